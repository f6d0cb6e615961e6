# SPDX-License-Identifier: Apache-2.0
"""What a detector says of images, as they are and under each trigger."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2defense.attacks import Trigger, stamp_, stamp_batch_
from d2defense.modeling import ProbeOutput
from d2defense.statistics import (
    SCORE_THRESHOLD,
    Observation,
    ObservationSettings,
    found_objects,
    reduce_probe,
)

from .images import CleanImage


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
            classes, found = [image.classes for image in batch], _found(output, batch)
            observations.append(reduce_probe(output, boxes, classes, found, settings))
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
    return stamp_(trigger, image.image.clone(), image.boxes, image_format, image.seed)


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
