# SPDX-License-Identifier: Apache-2.0
"""What a detector says of images, as they are and under each trigger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2defense.attacks import Trigger, stamp_batch_
from d2defense.evaluation.found import SCORE_THRESHOLD, found_objects
from d2defense.modeling import ProbeOutput
from d2defense.ops import (
    InconsistencyResult,
    Terms,
    confident_d_terms,
    gap_terms,
    inconsistency,
    target_mean_terms,
    tau_terms,
    true_class_terms,
    unmatched_foreground_terms,
)

from .images import CleanImage

STATISTICS = (
    "tau",
    "confident_d",
    "gap",
    "objects_found",
    "max_objectness",
    "max_foreground",
    "true_class",
    "unmatched_foreground",
)


# What the network computes in; statistics are always reduced from float32.
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class ObservationSettings:
    """How images are probed and proposals reduced; the values of ``DEFENSE`` of the same names.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    batch_size: int = 16
    epsilon: float = 0.1
    topk: int = 5
    objectness_floor: float = 0.8
    iou_threshold: float = 0.5
    num_bins: int = 20
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("batch_size", self.batch_size >= 1),
            ("epsilon", 0 <= self.epsilon < 1),
            ("topk", self.topk >= 0),
            ("objectness_floor", 0 <= self.objectness_floor <= 1),
            ("iou_threshold", 0 < self.iou_threshold <= 1),
            ("num_bins", self.num_bins >= 1),
            ("precision", self.precision in PRECISIONS),
        ):
            if not allowed:
                raise ValueError(f"{name} {getattr(self, name)} is out of range")


@dataclass(frozen=True)
class Observation:
    """The sums of G images, all that is kept of them.

    Attributes:
        terms: of every statistic of :data:`STATISTICS`, each of shape (G,).
        histogram: int64 Tensor of shape (num_bins,): inconsistency of the proposals.
    """

    terms: dict[str, Terms]
    histogram: Tensor

    @classmethod
    def join(cls, parts: Sequence[Observation]) -> Observation:
        """The images of several observations, one after another."""
        return cls(
            {
                name: Terms(*map(torch.cat, zip(*(p.terms[name] for p in parts), strict=True)))
                for name in STATISTICS
            },
            torch.stack([part.histogram for part in parts]).sum(0),
        )


def observe_batches(
    model: nn.Module,
    images: Sequence[CleanImage],
    triggers: Sequence[Trigger | None],
    settings: ObservationSettings,
    image_format: str,
    order: Sequence[int] | None = None,
) -> Iterator[list[Observation]]:
    """Probe ``model`` on one batch of images after another, under each trigger.

    Args:
        model: an instrumented detector in eval mode.
        images: read batch by batch, each once.
        triggers: stamped on every object; None leaves the images as they are.
        settings: of the reduction.
        image_format: channel order of the images, "BGR" or "RGB".
        order: in which to take the images; theirs if None.

    Yields:
        The observation under each trigger, for each batch.
    """
    in_half = settings.precision == "bf16"
    half_precision = torch.autocast(model.device.type, torch.bfloat16, enabled=in_half)
    if in_half:
        # Convolutions in half precision are fastest so; values stay as they are.
        model.to(memory_format=torch.channels_last)
    order = range(len(images)) if order is None else order
    for start in range(0, len(order), settings.batch_size):
        batch = [images[index] for index in order[start : start + settings.batch_size]]
        clean, sizes = _stack(batch, model.device)
        boxes, seeds = [image.boxes for image in batch], [image.seed for image in batch]
        observations = []
        for trigger in triggers:
            pixels = clean
            if trigger is not None:
                pixels = stamp_batch_(trigger, clean.clone(), sizes, boxes, seeds, image_format)
            inputs = [
                {"image": image[:, :height, :width]}
                for image, (height, width) in zip(pixels, sizes, strict=True)
            ]
            # Only detections that count as found, which saves most of the NMS.
            with half_precision:
                output = model.probe(inputs, with_detections=True, score_threshold=SCORE_THRESHOLD)
            observations.append(reduce_probe(output, batch, settings))
        yield observations


def observe(
    model: nn.Module,
    images: Sequence[CleanImage],
    trigger: Trigger | None,
    settings: ObservationSettings,
    image_format: str,
) -> Observation:
    """All images under one trigger; arguments as :func:`observe_batches`."""
    batches = observe_batches(model, images, [trigger], settings, image_format)
    return Observation.join([observation for (observation,) in batches])


def stamped(image: CleanImage, trigger: Trigger | None, image_format: str) -> Tensor:
    """The image's pixels, as they are or in a copy with ``trigger`` on every object."""
    if trigger is None:
        return image.image
    return trigger.stamp_(image.image.clone(), image.boxes, image_format, image.seed)


def reduce_probe(
    output: ProbeOutput, batch: Sequence[CleanImage], settings: ObservationSettings
) -> Observation:
    """From the proposals of a batch of images to its sums.

    Args:
        output: a probe of the batch, with detections.
        batch: the images, in the same order.
        settings: of the reduction.
    """
    device = output.proposal_boxes.device
    offsets = torch.tensor([0] + [len(image.boxes) for image in batch]).cumsum(0)
    known = output.class_logits.shape[1] - 1
    classes = torch.cat([image.classes for image in batch])
    result = inconsistency(
        output.objectness_logits,
        output.class_logits,
        output.proposal_boxes,
        output.proposal_offsets,
        torch.cat([image.boxes for image in batch]).to(device),
        offsets.to(device),
        torch.where(classes < known, classes, -1).to(device),
        epsilon=settings.epsilon,
        topk=settings.topk,
        objectness_floor=settings.objectness_floor,
        iou_threshold=settings.iou_threshold,
        num_bins=settings.num_bins,
    )
    result = InconsistencyResult(*(part.cpu() for part in result))
    of_targets = {
        "gap": gap_terms(result),
        "objects_found": target_mean_terms(_found(output, batch)),
        "max_objectness": target_mean_terms(result.target_objectness),
        "max_foreground": target_mean_terms(result.target_foreground),
        "true_class": true_class_terms(result),
    }
    terms = {
        "tau": tau_terms(result),
        "confident_d": confident_d_terms(result),
        "unmatched_foreground": unmatched_foreground_terms(result),
        **{name: value.per_image(offsets) for name, value in of_targets.items()},
    }
    return Observation({name: terms[name] for name in STATISTICS}, result.histogram.sum(0))


def _stack(
    batch: Sequence[CleanImage], device: torch.device
) -> tuple[Tensor, list[tuple[int, int]]]:
    """The images of a batch in one tensor (G, 3, H, W) on the device, and their sizes."""
    sizes = [tuple(image.image.shape[1:]) for image in batch]
    height, width = (max(side) for side in zip(*sizes, strict=True))
    padded = [
        F.pad(image.image, (0, width - w, 0, height - h))
        for image, (h, w) in zip(batch, sizes, strict=True)
    ]
    return torch.stack(padded).to(device), sizes


def _found(output: ProbeOutput, batch: Sequence[CleanImage]) -> Tensor:
    """Whether each object has a detection, of its own class where that is known; bool (M,)."""
    detections = output.detections
    objects = [len(image.boxes) for image in batch]
    return found_objects(
        torch.cat([image.boxes for image in batch]),
        torch.cat([image.classes for image in batch]),
        torch.cat([found.pred_boxes.tensor for found in detections]).cpu(),
        torch.cat([found.pred_classes for found in detections]).cpu(),
        torch.cat([found.scores for found in detections]).cpu(),
        (_image_of(objects), _image_of([len(found) for found in detections])),
    )


def _image_of(counts: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.tensor(counts))
