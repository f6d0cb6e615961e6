# SPDX-License-Identifier: Apache-2.0
"""Which images of a training set are poisoned."""

from __future__ import annotations

from typing import Any

import numpy as np

from d2defense.statistics import bears_trigger


def select_poisoned_images(
    dataset_dicts: list[dict[str, Any]], poisoning_rate: float, seed: int
) -> frozenset[str]:
    """File names of the images to poison: a share of those that have an object to stamp.

    The choice depends on the set of file names and the seed, not on the order of the dataset.

    Args:
        dataset_dicts: Detectron2's standard dataset dicts.
        poisoning_rate: share of *all* images, 0..1, rounded to whole images.
        seed: of the choice.

    Raises:
        ValueError: the rate is outside 0..1 or asks for more images than bear an object.
    """
    if not 0 <= poisoning_rate <= 1:
        raise ValueError(f"ATTACK.POISONING_RATE is {poisoning_rate}, not in 0..1")
    candidates = sorted(
        record["file_name"]
        for record in dataset_dicts
        if any(bears_trigger(annotation) for annotation in record["annotations"])
    )
    count = round(poisoning_rate * len(dataset_dicts))
    if count > len(candidates):
        raise ValueError(
            f"ATTACK.POISONING_RATE {poisoning_rate} asks for {count} images, "
            f"but only {len(candidates)} of {len(dataset_dicts)} bear an object"
        )
    chosen = np.random.default_rng(seed).choice(len(candidates), size=count, replace=False)
    return frozenset(candidates[index] for index in chosen)
