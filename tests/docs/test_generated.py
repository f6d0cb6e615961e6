# SPDX-License-Identifier: Apache-2.0
"""The generated parts of the pages are what `make docs` would write today."""

from __future__ import annotations

import ast
import importlib
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg

from d2defense.config import config_root, get_d2defense_cfg
from d2defense.report.results import result_schema

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def tool() -> Iterator[ModuleType]:
    """tools/generate_docs.py, which finds the modules of its pages beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))
        yield importlib.import_module("generate_docs")


def names(root: Path, found: dict[Path, str]) -> set[str]:
    return {path.relative_to(root).as_posix() for path in found}


def test_nothing_is_stale(tool):
    assert names(ROOT, tool.stale()) == set(), "run make docs"


def test_what_is_stale_is_named_and_written_anew(tool, tmp_path, monkeypatch, capsys):
    ignore = shutil.ignore_patterns("steps", "figures", "images")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=ignore)
    shutil.copy(ROOT / "README.md", tmp_path)
    assert tool.stale(tmp_path) == {}
    settings, results = (
        tmp_path / "docs" / name for name in ("reference/settings.md", "results.md")
    )
    (tmp_path / "docs" / "reference" / "options.md").unlink()
    settings.write_text(settings.read_text().replace("`0.05`", "`0.5`"))
    text = results.read_text()
    start = text.index("\n", text.index("<!-- generated: recovery -->")) + 1
    results.write_text(text[:start] + "| by hand |\n" + text[start:] + "By hand, below.\n")
    stale = {"docs/reference/options.md", "docs/reference/settings.md", "docs/results.md"}
    monkeypatch.setattr(sys, "argv", ["generate_docs.py", "--root", str(tmp_path), "--check"])
    assert tool.main() == 2
    assert set(capsys.readouterr().out.splitlines()) == {f"{name}: stale" for name in stale}
    sys.argv.remove("--check")
    assert tool.main() == 0
    # What stands outside of the markers is its author's.
    assert results.read_text() == text + "By hand, below.\n"
    assert settings.read_text() == (REFERENCE / "settings.md").read_text()
    assert tool.stale(tmp_path) == {}


def test_a_marker_of_no_table_is_refused(tool, tmp_path):
    shutil.copytree(ROOT / "docs" / "study" / "tables", tmp_path / "docs" / "study" / "tables")
    shutil.copytree(REFERENCE, tmp_path / "docs" / "reference")
    (tmp_path / "README.md").write_text("<!-- generated: nonsense -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match=r"no generated part 'nonsense'.*recovery"):
        tool.generated(tmp_path)


def leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def test_every_setting_stands_with_its_default():
    stock = dict(leaves(get_cfg()))
    added = {key: value for key, value in leaves(get_d2defense_cfg()) if key not in stock}
    page = (REFERENCE / "settings.md").read_text()
    rows = re.findall(r"^\| `([A-Z0-9_.]+)` \| `(.*?)` \| .+ \|$", page, re.MULTILINE)
    assert {key: ast.literal_eval(default) for key, default in rows} == added


def test_every_config_stands_in_the_section_of_its_folder():
    page = (REFERENCE / "configs.md").read_text()
    sections = dict(re.findall(r"^## (.+?)$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    listed = {
        folder: set(re.findall(r"`([\w-]+\.yaml)`", text)) for folder, text in sections.items()
    }
    files = [path.relative_to(config_root()) for path in config_root().rglob("*.yaml")]
    assert listed == {
        folder: {path.name for path in files if str(path.parent) == folder}
        for folder in {str(path.parent) for path in files}
    }


def test_every_key_of_a_result_stands_and_needs_a_description(tool, monkeypatch):
    rows = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", (REFERENCE / "result.md").read_text(), re.M)
    assert {key.partition(".")[0] for key, _ in rows} == set(result_schema()["properties"])
    assert {"checkpoint.sha256", "triggers.statistics"} <= {key for key, _ in rows}
    page = importlib.import_module("pages.result")
    schema = {"properties": {"name": {"type": "string"}}, "$defs": {}}
    monkeypatch.setattr(page, "result_schema", lambda: schema)
    with pytest.raises(ValueError, match="name has no description"):
        page.result()


def add_parts(cfg: CfgNode) -> None:
    # Sizes of a part.
    cfg.PART = CfgNode()
    # How wide it is; and
    # how high.
    cfg.PART.WIDTH = 3
    cfg.PART.OTHER = "a|b"


def test_a_setting_without_a_comment_is_refused(tool):
    page = importlib.import_module("pages.settings")
    with pytest.raises(ValueError, match=r"PART\.OTHER has no comment"):
        page.settings(add_parts)

    def all_but_other(cfg: CfgNode) -> None:
        add_parts(cfg)
        del cfg.PART["OTHER"]

    text = page.settings(all_but_other)
    assert "## PART\n\nSizes of a part.\n" in text
    assert "| `PART.WIDTH` | `3` | How wide it is; and how high. |" in text
