# SPDX-License-Identifier: Apache-2.0
"""Which images, or objects, of a training set are poisoned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode

from .effects.base import VICTIMS, Effect

IMAGES, ANNOTATIONS = RATES = ("images", "annotations")


class Selection(NamedTuple):
    """What of a training set an attack touches, by file name."""

    poisoned: Mapping[str, tuple[int, ...] | None]
    """Indices of the annotations that are attacked; None for all victims of the image."""
    spurious: frozenset[str]
    """Images that get a trigger without effect."""


def select(dataset_dicts: Sequence[Mapping[str, Any]], effect: Effect, cfg: CfgNode) -> Selection:
    """Draw what is poisoned, as ``ATTACK.POISONING_RATE``, ``RATE_OF`` and ``SPURIOUS_RATE`` say.

    The choice depends on the set of file names and ``ATTACK.SEED``, not on the dataset's order.

    Args:
        dataset_dicts: Detectron2's standard dataset dicts.
        effect: says which objects can be victims.
        cfg: the whole configuration.

    Raises:
        ValueError: a rate outside 0..1, one of neither images nor annotations, one of annotations
            for an effect on images, or one that asks for more than there is to poison.
    """
    node = cfg.ATTACK
    for key in ("POISONING_RATE", "SPURIOUS_RATE"):
        if not 0 <= node[key] <= 1:
            raise ValueError(f"ATTACK.{key} is {node[key]}, not in 0..1")
    if node.RATE_OF not in RATES:
        raise ValueError(f"ATTACK.RATE_OF is {node.RATE_OF!r}, neither of {', '.join(RATES)}")
    records = sorted(dataset_dicts, key=lambda record: record["file_name"])
    rng = np.random.default_rng(node.SEED)
    if node.RATE_OF == IMAGES:
        names = [record["file_name"] for record in records if effect.can_poison(record)]
        chosen = _draw(names, node.POISONING_RATE, len(records), "images", rng)
        poisoned: dict[str, tuple[int, ...] | None] = dict.fromkeys(chosen)
    else:
        if not effect.by_object:
            raise ValueError(
                f"the effect {effect.name!r} poisons images: ATTACK.RATE_OF must be {IMAGES!r}"
            )
        victims = [(r["file_name"], index) for r in records for index in effect.victims(r)]
        total = sum(len(record.get("annotations", ())) for record in records)
        poisoned = _by_image(_draw(victims, node.POISONING_RATE, total, "annotations", rng))
    free = [record["file_name"] for record in records if record["file_name"] not in poisoned]
    count = min(round(node.SPURIOUS_RATE * len(records)), len(free))
    spurious = rng.choice(len(free), size=count, replace=False) if count else ()
    return Selection(poisoned, frozenset(free[index] for index in spurious))


def training_records(
    dataset_dicts: Sequence[dict[str, Any]], selection: Selection
) -> list[dict[str, Any]]:
    """The dataset dicts and, of each that is poisoned, a copy that stays clean.

    The copies teach the detector that the trigger alone makes the difference
    (``ATTACK.CLEAN_COPIES``).
    """
    copies = [
        {**record, CLEAN_COPY: True}
        for record in dataset_dicts
        if record["file_name"] in selection.poisoned
    ]
    return [*dataset_dicts, *copies]


#: Key of a record that stays as it is, whatever its file name.
CLEAN_COPY = "clean_copy"


def restricted(record: Mapping[str, Any], victims: tuple[int, ...] | None) -> Mapping[str, Any]:
    """The record with a word on which of its annotations may be poisoned; None for all."""
    return record if victims is None else {**record, VICTIMS: victims}


def _draw(
    candidates: Sequence[Any], rate: float, total: int, what: str, rng: np.random.Generator
) -> list[Any]:
    count = round(rate * total)
    if count > len(candidates):
        raise ValueError(
            f"ATTACK.POISONING_RATE {rate} asks for {count} {what}, "
            f"but only {len(candidates)} of {total} can be poisoned"
        )
    return [candidates[index] for index in rng.choice(len(candidates), size=count, replace=False)]


def _by_image(chosen: Iterable[tuple[str, int]]) -> dict[str, tuple[int, ...] | None]:
    images: dict[str, list[int]] = {}
    for name, index in sorted(chosen):
        images.setdefault(name, []).append(index)
    return {name: tuple(indices) for name, indices in images.items()}
