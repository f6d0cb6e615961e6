# SPDX-License-Identifier: Apache-2.0
"""What a detector says of images, as they are and under each trigger."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2defense.modeling import BatchSize, ProbeOutput, alike
from d2defense.statistics import (
    SCORE_THRESHOLD,
    Observation,
    ObservationSettings,
    deployed_terms,
    found_objects,
    found_terms,
    object_rank_terms,
    reduce_probe,
)
from d2defense.triggers import Trigger

from .images import CleanImage, input_shapes
from .scale import DeployedScale, scaled_logits


class Batch(NamedTuple):
    """What was observed of some images at a time."""

    images: int
    """How many."""
    observations: list[Observation]
    """One under each trigger."""


def observe_batches(
    model: nn.Module,
    images: Sequence[CleanImage],
    triggers: Sequence[Trigger | None],
    settings: ObservationSettings,
    image_format: str,
    order: Sequence[int] | None = None,
    on_pass: Callable[[int], None] | None = None,
    batch_size: BatchSize | None = None,
    scale: DeployedScale | None = None,
) -> Iterator[Batch]:
    """Probe ``model`` on one batch of images after another, under each trigger.

    Images of like shape go together, as many as ``settings.batch_size`` asks for and the memory
    holds.

    Args:
        model: an instrumented detector in eval mode.
        images: read batch by batch, each once.
        triggers: stamped on every object; None leaves the images as they are.
        settings: of the reduction.
        image_format: channel order of the images, "BGR" or "RGB".
        order: in which to take the images, a batch of ``settings.batch_size`` of them at a time;
            by their shapes if None.
        on_pass: called with the number of images of every forward pass.
        batch_size: says how many images fit, and which batch was used; a new one if None.
        scale: of the model; None to leave the statistics out that need it. With it, what the
            detector finds is counted from its operating point on wherever its ability is judged.

    Yields:
        The observations of each batch.

    Raises:
        RuntimeError, MemoryError: not even one image fits into the memory.
    """
    if settings.precision == "bf16":
        # Convolutions in half precision are fastest so; values stay as they are.
        model.to(memory_format=torch.channels_last)
    batch_size = batch_size or BatchSize(model, settings.batch_size)
    shapes = input_shapes(images)
    divisor = max(1, model.backbone.size_divisibility)
    step = len(images) if order is None else settings.batch_size
    order = range(len(images)) if order is None else order
    for start in range(0, len(order), step):
        chosen = order[start : start + step]
        for group in alike([shapes[index] for index in chosen], divisor):
            indices = [chosen[position] for position in group]

            def work(part: Sequence[int]) -> Batch:
                batch = [images[index] for index in part]
                observed = [
                    _observe_batch(model, batch, trigger, settings, image_format, scale)
                    for trigger in _announced(triggers, len(batch), on_pass)
                ]
                return Batch(len(batch), observed)

            yield from batch_size.run(indices, shapes[indices[0]], work)


def observe_together(
    model: nn.Module,
    images: Sequence[CleanImage],
    triggers: Sequence[Trigger | None],
    settings: ObservationSettings,
    image_format: str,
    scale: DeployedScale | None,
    batch_size: BatchSize,
) -> list[Observation]:
    """Probe ``model`` on a few images under many triggers, several triggers in one forward pass.

    Args:
        model: an instrumented detector in eval mode.
        images: all are in memory at once.
        triggers: as :func:`observe_batches` takes them.
        settings: of the reduction.
        image_format: channel order of the images, "BGR" or "RGB".
        scale: of the model; None to leave the statistics out that need it.
        batch_size: says how many images fit.

    Returns:
        The observation under each trigger, without histograms; the images stand in the order of
        their shapes, alike under each trigger.

    Raises:
        RuntimeError, MemoryError: not even one image fits into the memory.
    """
    shapes = [tuple(image.image.shape[1:]) for image in images]
    divisor = max(1, model.backbone.size_divisibility)
    parts: list[list[Observation]] = [[] for _ in triggers]
    for group in alike(shapes, divisor):
        pairs = [(row, image) for row in range(len(triggers)) for image in group]

        def work(part: Sequence[int], pairs: Sequence[tuple[int, int]] = pairs) -> None:
            chosen = [pairs[index] for index in part]
            batch = [images[image] for _, image in chosen]
            under_each = {
                row: [images[image] for _, image in those]
                for row, those in groupby(chosen, key=itemgetter(0))
            }
            pixels = [
                each
                for row, those in under_each.items()
                for each in _batch_pixels(model, those, triggers[row], image_format)
            ]
            seen = _observe_pixels(model, batch, pixels, settings, scale, with_ability=False)
            sizes = list(map(len, under_each.values()))
            for row, each in zip(under_each, seen.split(sizes), strict=True):
                parts[row].append(each)

        for _ in batch_size.run(range(len(pairs)), shapes[group[0]], work):
            pass
    return [Observation.join(each) for each in parts]


def _announced(
    triggers: Sequence[Trigger | None], num_images: int, on_pass: Callable[[int], None] | None
) -> Iterator[Trigger | None]:
    """The triggers, with word of each after it was dealt with."""
    for trigger in triggers:
        yield trigger
        if on_pass is not None:
            on_pass(num_images)


def _observe_batch(
    model: nn.Module,
    batch: Sequence[CleanImage],
    trigger: Trigger | None,
    settings: ObservationSettings,
    image_format: str,
    scale: DeployedScale | None,
) -> Observation:
    """Images of like shape in one forward pass, under one trigger."""
    pixels = _batch_pixels(model, batch, trigger, image_format)
    return _observe_pixels(model, batch, pixels, settings, scale, with_ability=trigger is None)


def _batch_pixels(
    model: nn.Module, batch: Sequence[CleanImage], trigger: Trigger | None, image_format: str
) -> list[Tensor]:
    """Images of like shape, as they are or under one trigger, where the model lies."""
    stack, sizes = stack_images(batch, model.device)
    if trigger is not None:
        boxes, seeds = [image.boxes for image in batch], [image.seed for image in batch]
        stack = trigger.apply(stack, sizes, boxes, seeds, image_format)
    return [image[:, :height, :width] for image, (height, width) in zip(stack, sizes, strict=True)]


def _observe_pixels(
    model: nn.Module,
    batch: Sequence[CleanImage],
    pixels: Sequence[Tensor],
    settings: ObservationSettings,
    scale: DeployedScale | None,
    with_ability: bool,
) -> Observation:
    """One forward pass over images of like shape; ``pixels`` are theirs as they are looked at."""
    inputs = [{"image": image} for image in pixels]
    boxes = [image.boxes for image in batch]
    in_half = settings.precision == "bf16"
    point = SCORE_THRESHOLD if scale is None else scale.point
    # Only detections that count as found, which saves most of the NMS.
    with torch.autocast(model.device.type, torch.bfloat16, enabled=in_half):
        output = model.probe(
            inputs, with_detections=True, score_threshold=min(point, SCORE_THRESHOLD)
        )
    classes = [image.classes for image in batch]
    observed = reduce_probe(output, boxes, classes, _found(output, batch), settings)
    if scale is not None:
        terms, by_class = deployed_terms(
            output,
            scaled_logits(output.deployed_logits, scale.foreground),
            boxes,
            classes,
            _found(output, batch, point),
            settings,
        )
        observed = replace(observed, deployed=terms, by_class=by_class)
    if not with_ability:
        return observed
    found = found_terms(_found(output, batch, point, of_any_class=True), list(map(len, boxes)))
    ability = {"found_any_class": found, "object_rank": object_rank_terms(output, boxes)}
    return replace(observed, ability=ability)


def observe(
    model: nn.Module,
    images: Sequence[CleanImage],
    trigger: Trigger | None,
    settings: ObservationSettings,
    image_format: str,
) -> Observation:
    """All images under one trigger; arguments as :func:`observe_batches`."""
    batches = observe_batches(model, images, [trigger], settings, image_format)
    return Observation.join([batch.observations[0] for batch in batches])


def stamped(
    image: CleanImage,
    trigger: Trigger | None,
    image_format: str,
    places: Tensor | None = None,
) -> Tensor:
    """The image's pixels, as they are or in a copy with ``trigger``.

    Args:
        image: a clean image.
        trigger: or None.
        image_format: channel order of the image, "BGR" or "RGB".
        places: (P, 4), XYXY in pixels of it, that bear the trigger; every object if None.
    """
    if trigger is None:
        return image.image
    size, places = tuple(image.image.shape[1:]), image.boxes if places is None else places
    return trigger.apply(image.image[None], [size], [places], [image.seed], image_format)[0]


def stack_images(
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


def _found(
    output: ProbeOutput,
    batch: Sequence[CleanImage],
    point: float = SCORE_THRESHOLD,
    of_any_class: bool = False,
) -> Tensor:
    """Whether each object has a detection, of its own class where that is known; bool (M,)."""
    detections = output.detections
    objects = [len(image.boxes) for image in batch]
    return found_objects(
        torch.cat([image.boxes for image in batch]),
        None if of_any_class else torch.cat([image.classes for image in batch]),
        torch.cat([found.pred_boxes.tensor for found in detections]).cpu(),
        torch.cat([found.pred_classes for found in detections]).cpu(),
        torch.cat([found.scores for found in detections]).cpu(),
        (_image_of(objects), _image_of([len(found) for found in detections])),
        point,
    )


def _image_of(counts: Sequence[int]) -> Tensor:
    return torch.repeat_interleave(torch.tensor(counts))
