# SPDX-License-Identifier: Apache-2.0
"""What a repair's measures say that its trigger reaches, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Reached(NamedTuple):
    """An effect, and how far it goes."""

    label: str
    """What it is, in words."""
    before: float | None
    """Of the checkpoint, 0..1."""
    after: float | None
    """Of the result."""


def attack_success(before: Mapping[str, Any], after: Mapping[str, Any]) -> Reached:
    """That of the trigger that both were measured with."""
    return Reached("attack success rate", before.get("asr"), after.get("asr"))


def by_search(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Reached]:
    """Of each effect, what a search reaches beyond clean detectors; none without a search."""
    was, now = before.get("search") or {}, after.get("search") or {}
    return [
        Reached(f"{effect.replace('_', ' ')} by a search", was.get(effect), now.get(effect))
        for effect in sorted(was.keys() | now.keys())
    ]


def most_reached(before: Mapping[str, Any], after: Mapping[str, Any]) -> Reached:
    """What went farthest before the repair: what it was about."""
    known = [attack_success(before, after), *by_search(before, after)]
    return max(known, key=lambda each: -1.0 if each.before is None else each.before)
