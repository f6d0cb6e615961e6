# SPDX-License-Identifier: Apache-2.0
"""What the pages name is there: files, headings, commands, options, settings."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from d2defense.cli.program import COMMANDS, command_parser
from d2defense.config import get_d2defense_cfg, merge_overrides

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Scripts that are commands.
TOOLS = {"scan": "scan", "train_net": "train", "reproduce": "reproduce"}
# Options of programs that are not ours.
FOREIGN = {"--help", "--no-build-isolation", "--no-deps", "--require-hashes", "--constraint"}

page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def anchors(path: Path) -> set[str]:
    """Of the headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


@page
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", without_code(path.read_text())):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def code_lines(text: str) -> Iterator[str]:
    """Lines of fenced and of indented blocks, those that a backslash breaks joined."""
    fenced = False
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()


def commands(text: str) -> Iterator[list[str]]:
    """The words of every command of ours in the code blocks of a page."""
    for line in code_lines(text):
        found = re.match(r"(?:- run: )?(d2defense|python tools/(\w+)\.py)(?= )(.*)", line)
        if found and (found[2] is None or found[2] in TOOLS):
            words = shlex.split(re.split(r" \|\| | > |  #", found[3])[0])
            yield [TOOLS[found[2]], *words] if found[2] else words


@cache
def parser_of(command: str) -> argparse.ArgumentParser:
    return command_parser(importlib.import_module(f"d2defense.cli.{command}"), command)


@page
def test_commands_are_ones_that_the_program_takes(path: Path) -> None:
    for name, *words in commands(path.read_text()):
        assert name in COMMANDS
        args = parser_of(name).parse_args([word for word in words if word != "..."])
        for key in ("opts", "training_opts", "repair_opts"):
            merge_overrides(get_d2defense_cfg(), getattr(args, key, None) or [])


def test_commands_are_found_and_wrong_ones_noticed(capsys) -> None:
    text = "    d2defense scan a \\\n        --output o  # a comment\n\nd2defense is.\n"
    assert list(commands(text)) == [["scan", "a", "--output", "o"]]
    with pytest.raises(SystemExit):
        parser_of("scan").parse_args(["a", "--no-such-option"])
    assert "--no-such-option" in capsys.readouterr().err
    assert sum(len(list(commands(path.read_text()))) for path in PAGES) > 20


@cache
def known_options() -> set[str]:
    sources = [p for folder in ("d2defense/cli", "tools", "benchmarks", "tests/ops")
               for p in (ROOT / folder).rglob("*.py")]  # fmt: skip
    return {o for p in sources for o in re.findall(r'"(--[a-z][a-z-]+)"', p.read_text())}


@page
def test_options_and_commands_named_in_a_sentence_exist(path: Path) -> None:
    for code in re.findall(r"`([^`\n]+)`", without_code(path.read_text())):
        options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", code))
        assert options <= known_options() | FOREIGN, code
        found = re.match(r"d2defense ([a-z]+)\b", code)
        assert not found or found[1] in COMMANDS, code


@page
def test_settings_exist(path: Path) -> None:
    cfg = get_d2defense_cfg()
    nodes = "|".join(name for name, value in cfg.items() if isinstance(value, dict))
    text = without_code(path.read_text())
    for key in re.findall(rf"\b((?:{nodes})(?:\.[A-Z0-9_]+)+)", text):
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]
