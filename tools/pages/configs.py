# SPDX-License-Identifier: Apache-2.0
"""The configs that come along, from the comment at the head of each."""

from __future__ import annotations

from itertools import takewhile

from d2defense.config import config_root

from .markdown import page, table

INTRODUCTION = """\
In `configs/` of a clone, inside the package of an installation
(`python -c "from d2defense.config import config_root; print(config_root())"`). What they share is
said in [configuration.md](../configuration.md)."""


def configs() -> str:
    """One section a folder."""
    sections = []
    root = config_root()
    for folder in sorted({path.parent for path in root.rglob("*.yaml")}):
        files: dict[str, list[str]] = {}
        for path in sorted(folder.glob("*.yaml")):
            lines = path.read_text(encoding="utf-8").splitlines()
            head = takewhile(lambda line: line.startswith("#"), lines)
            comment = " ".join(line.lstrip("# ") for line in head)
            if not comment:
                raise ValueError(f"{path} has no comment at its head")
            files.setdefault(comment, []).append(f"`{path.name}`")
        rows = [[", ".join(names), comment] for comment, names in files.items()]
        sections += [f"## {folder.relative_to(root)}", table(("file", "what it is"), rows)]
    return page("Configs that come along", INTRODUCTION, *sections)
