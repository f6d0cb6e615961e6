# SPDX-License-Identifier: Apache-2.0
"""What a detector says of a set of images, with or without a trigger on every object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from d2defense.attacks import Trigger
from d2defense.evaluation.found import found_objects
from d2defense.modeling import ProbeOutput
from d2defense.ops import InconsistencyResult, inconsistency

from .images import CleanImage


@dataclass(frozen=True)
class ObservationSettings:
    """How proposals are reduced; the values of ``DEFENSE`` of the same names.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    batch_size: int = 16
    epsilon: float = 0.1
    topk: int = 5
    objectness_floor: float = 0.8
    iou_threshold: float = 0.5
    num_bins: int = 20

    def __post_init__(self) -> None:
        for name, allowed in (
            ("batch_size", self.batch_size >= 1),
            ("epsilon", 0 <= self.epsilon < 1),
            ("topk", self.topk >= 0),
            ("objectness_floor", 0 <= self.objectness_floor <= 1),
            ("iou_threshold", 0 < self.iou_threshold <= 1),
            ("num_bins", self.num_bins >= 1),
        ):
            if not allowed:
                raise ValueError(f"{name} {getattr(self, name)} is out of range")


@dataclass(frozen=True)
class Observation:
    """Per-image and per-object sums over G images with M objects; no proposal is kept.

    Attributes:
        result: the op's reductions, on the CPU.
        found: bool Tensor of shape (M,): the object has a detection of score >= 0.5 with
            IoU >= 0.5, of its own class where the classes of model and dataset agree.
        target_offsets: int64 Tensor of shape (G + 1,): which objects lie on which image.
    """

    result: InconsistencyResult
    found: Tensor
    target_offsets: Tensor


def observe(
    model: nn.Module,
    images: Sequence[CleanImage],
    trigger: Trigger | None,
    settings: ObservationSettings,
    image_format: str,
    match_classes: bool,
) -> Observation:
    """Probe ``model`` on every image and reduce its proposals to sums.

    Args:
        model: an instrumented detector in eval mode.
        images: at least one clean image.
        trigger: stamped on every object first, or None.
        settings: of the reduction.
        image_format: channel order of the images, "BGR" or "RGB".
        match_classes: whether an object is found only by a detection of its own class.
    """
    results, found, counts = [], [], [0]
    for batch in _batches(images, settings.batch_size):
        inputs = [{"image": stamped(image, trigger, image_format)} for image in batch]
        output = model.probe(inputs, with_detections=True)
        results.append(_reduce(output, batch, settings))
        for image, detections in zip(batch, output.detections, strict=True):
            detections = detections.to("cpu")
            found.append(
                found_objects(
                    image.boxes,
                    image.classes if match_classes else None,
                    detections.pred_boxes.tensor,
                    detections.pred_classes,
                    detections.scores,
                )
            )
            counts.append(len(image.boxes))
    joined = InconsistencyResult(*(torch.cat(parts).cpu() for parts in zip(*results, strict=True)))
    return Observation(joined, torch.cat(found), torch.tensor(counts).cumsum(0))


def stamped(image: CleanImage, trigger: Trigger | None, image_format: str) -> Tensor:
    """The image's pixels, as they are or in a copy with ``trigger`` on every object."""
    if trigger is None:
        return image.image
    return trigger.stamp_(image.image.clone(), image.boxes, image_format, image.seed)


def _batches(images: Sequence[CleanImage], size: int) -> Iterator[Sequence[CleanImage]]:
    for start in range(0, len(images), size):
        yield images[start : start + size]


def _reduce(
    output: ProbeOutput, batch: Sequence[CleanImage], settings: ObservationSettings
) -> InconsistencyResult:
    device = output.proposal_boxes.device
    counts = torch.tensor([0] + [len(image.boxes) for image in batch])
    known = output.class_logits.shape[1] - 1
    classes = torch.cat([image.classes for image in batch])
    return inconsistency(
        output.objectness_logits,
        output.class_logits,
        output.proposal_boxes,
        output.proposal_offsets,
        torch.cat([image.boxes for image in batch]).to(device),
        counts.cumsum(0).to(device),
        torch.where(classes < known, classes, -1).to(device),
        epsilon=settings.epsilon,
        topk=settings.topk,
        objectness_floor=settings.objectness_floor,
        iou_threshold=settings.iou_threshold,
        num_bins=settings.num_bins,
    )
