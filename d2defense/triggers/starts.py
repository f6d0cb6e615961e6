# SPDX-License-Identifier: Apache-2.0
"""What a search for an unknown trigger starts from."""

from __future__ import annotations

from collections.abc import Sequence

from d2defense.registry import TRIGGER_REGISTRY

from .base import PlaceKind, Trigger


def all_starts(kind: PlaceKind, families: Sequence[str] = ()) -> list[Trigger]:
    """The triggers of all families that a search starts from.

    Args:
        kind: of the places where the trigger is going to be.
        families: names in ``TRIGGER_REGISTRY`` of those to keep; all if empty.
    """
    return [
        start
        for name, family in TRIGGER_REGISTRY
        if not families or name in families
        for start in family.search_starts(kind)
    ]
