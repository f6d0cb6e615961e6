# SPDX-License-Identifier: Apache-2.0
"""Count what a dataset holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ClassCount:
    """How often a class occurs.

    Attributes:
        name: the class.
        objects: number of its objects, crowd regions left out.
        images: number of images with at least one of them.
    """

    name: str
    objects: int
    images: int


def count_classes(
    dataset_dicts: Sequence[dict[str, Any]], class_names: Sequence[str]
) -> list[ClassCount]:
    """Objects and images of each class, in the classes' order.

    Args:
        dataset_dicts: dicts in Detectron2's standard format.
        class_names: names by contiguous class id.
    """
    objects: Counter[int] = Counter()
    images: Counter[int] = Counter()
    for record in dataset_dicts:
        found = [a["category_id"] for a in record["annotations"] if not a.get("iscrowd", 0)]
        objects.update(found)
        images.update(set(found))
    return [ClassCount(name, objects[i], images[i]) for i, name in enumerate(class_names)]
