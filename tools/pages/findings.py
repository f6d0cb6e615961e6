# SPDX-License-Identifier: Apache-2.0
"""What is looked for in COCO-format data, and what becomes of it."""

from __future__ import annotations

from d2defense.data.coco import Kind

from .markdown import page, table

INTRODUCTION = """\
What every command looks for in annotations of your own, and what becomes of it: an error, put right
without a guess and counted, or noted. More: [dataset.md](../dataset.md)."""


def findings() -> str:
    """One line a kind of finding."""
    rows = [(kind.what, ": ".join(filter(None, (kind.outcome, kind.then)))) for kind in Kind]
    return page("Checks of a dataset", INTRODUCTION, table(("what is looked for", "then"), rows))
