# SPDX-License-Identifier: Apache-2.0
"""Which class of the detector an object's class is, by what the detector says on clean images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import nn

from d2defense.statistics import IOU_THRESHOLD, annotated_objects

from .classes import ClassMap
from .images import CleanImages
from .scale import LEAST_SCORE, as_detections

#: The source of a class map that comes from the detector itself.
MATCHED = "what the detector says on the clean images"
# Images that say enough; objects that do, where most are detected as of the class of their number.
_ENOUGH_IMAGES, _ENOUGH_OBJECTS = 50, 30
# Least share of a class's objects that must be detected as one class, and how many at least.
_LEAST_SHARE, _LEAST_COUNT = 0.5, 3


def match_classes(
    model: nn.Module,
    records: Sequence[dict[str, Any]],
    images: CleanImages,
    class_names: Sequence[str],
    num_classes: int,
) -> ClassMap | None:
    """The class map that a detector itself suggests; None where it needs none or suggests none.

    It needs none where most objects are detected as of the class of the same number. Else classes
    of dataset and detector are assigned to each other such that as many objects as possible are
    detected as of their class.

    Args:
        model: instrumented, in eval mode.
        records: Detectron2's standard dataset dicts.
        images: the same as the detector sees them.
        class_names: of the dataset, each once.
        num_classes: of the detector.
    """
    # The functions behind it take half a second to import.
    from scipy.optimize import linear_sum_assignment

    if not class_names or len(set(class_names)) < len(class_names):
        return None
    counts = torch.zeros(len(class_names), num_classes, dtype=torch.int64)
    is_same_number = len(class_names) == num_classes

    def fits() -> bool:
        return is_same_number and int(counts.diagonal().sum()) >= _LEAST_SHARE * int(counts.sum())

    for index in range(min(len(images), _ENOUGH_IMAGES)):
        image, (_, classes) = images[index], annotated_objects(records[index])
        output = model.probe(
            [{"image": image.image}], with_detections=True, score_threshold=LEAST_SCORE
        )
        detections = as_detections(output.detections[0])
        overlap = pairwise_iou(Boxes(image.boxes), Boxes(detections.boxes)) >= IOU_THRESHOLD
        if not overlap.numel():
            continue
        scores = torch.where(overlap, detections.scores[None], -1.0)
        best, which = scores.max(dim=1)
        is_found = (best > 0) & (classes < len(class_names))
        said = detections.classes[which[is_found]]
        counts.index_put_((classes[is_found], said), torch.ones_like(said), accumulate=True)
        if int(counts.sum()) >= _ENOUGH_OBJECTS and fits():
            return None
    if fits():
        return None
    rows, columns = linear_sum_assignment(counts.numpy(), maximize=True)
    entries = tuple(
        (class_names[row], column)
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True)
        if counts[row, column] >= max(_LEAST_COUNT, _LEAST_SHARE * float(counts[row].sum()))
    )
    return ClassMap(MATCHED, entries) if entries else None


def unmatched_in_words(
    class_map: ClassMap, class_names: Sequence[str], records: Sequence[dict[str, Any]]
) -> str | None:
    """Which classes of objects match none of the detector's, in one sentence; None if all do.

    Whoever made the detector can see to it that a class matches none.

    Args:
        class_map: of :func:`match_classes`.
        class_names: of the dataset.
        records: Detectron2's standard dataset dicts.
    """
    known = {name for name, _ in class_map.entries}
    shown = {index for record in records for index in annotated_objects(record)[1].tolist()}
    unknown = [
        name for index, name in enumerate(class_names) if index in shown and name not in known
    ]
    if not unknown:
        return None
    return (
        f"which of its classes {', '.join(unknown)} is does not follow from what it says on the "
        "clean images, so what it does to each was not looked at: give a class map (--class-map)"
    )


def matched_in_words(class_map: ClassMap) -> str:
    """What was matched, in one sentence."""
    pairs = ", ".join(f"{name} is its class {index}" for name, index in class_map.entries)
    return f"no class map was given; classes were matched by {class_map.source}: {pairs}"
