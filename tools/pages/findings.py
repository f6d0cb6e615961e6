# SPDX-License-Identifier: Apache-2.0
"""What is looked for in COCO-format data, and what becomes of it."""

from __future__ import annotations

from d2defense.data.coco import Kind

from .markdown import table


def findings() -> str:
    """One line a kind of finding."""
    rows = [(kind.what, ": ".join(filter(None, (kind.outcome, kind.then)))) for kind in Kind]
    return table(("what is looked for", "then"), rows)
