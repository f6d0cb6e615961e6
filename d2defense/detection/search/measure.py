# SPDX-License-Identifier: Apache-2.0
"""What a found trigger does to a detector's detections, on images that it was not found on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from d2defense.attacks import Detections, Effect, Objects
from d2defense.devices import computes_bf16
from d2defense.modeling import alike
from d2defense.statistics import Terms, found_objects
from d2defense.triggers import Trigger

from ..images import CleanImage, input_shapes
from ..observing import stack_images
from ..scale import (
    LEAST_SCORE,
    as_detections,
    lenient_point,
    on_common_scale,
    operating_point,
)
from .arms import Goal
from .crops import is_large
from .room import with_room

# That go through the network together.
_MOST_IMAGES, _MOST_PIXELS = 8, 1 << 21


@dataclass(frozen=True)
class Measured:
    """A detector, with what it says of the clean images.

    Attributes:
        model: in eval mode.
        point: the score from which on it finds an object.
        lenient: the score from which on what it says where nothing is counts.
        clean: its detections on the images for measurement, from the point on, on the common scale.
        with_room: likewise on those with room (:func:`~.room.with_room`), from the lenient one on.
    """

    model: nn.Module
    point: float
    lenient: float
    clean: tuple[Detections, ...]
    with_room: tuple[Detections, ...]

    def point_of(self, effect: Effect) -> float:
        """The score from which on its detections count for an effect.

        Args:
            effect: on objects, or one that makes them appear.
        """
        return self.point if effect.takes_victim_class else self.lenient

    def found(self, images: Sequence[CleanImage]) -> float:
        """Share of the objects that it finds without a trigger, 0..1.

        Args:
            images: those of :attr:`clean`.
        """
        total = hits = 0
        for image, seen in zip(images, self.clean, strict=True):
            found = found_objects(image.boxes, image.classes, *seen)
            total, hits = total + len(found), hits + int(found.sum())
        return hits / max(1, total)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        tuning: Sequence[CleanImage],
        images: Sequence[CleanImage],
        image_format: str,
    ) -> Measured:
        """Find the operating point of a detector.

        Args:
            model: in eval mode.
            tuning: clean images to find it on.
            images: those to measure on.
            image_format: order of the channels, "BGR" or "RGB".
        """
        seen = detect(model, tuning, None, None, image_format, 0, LEAST_SCORE)
        objects = [Objects(image.boxes, image.classes) for image in tuning]
        point, lenient = operating_point(objects, seen), lenient_point(objects, seen)
        clean, roomy = (
            tuple(
                on_common_scale(each, least)
                for each in detect(model, shown, None, None, image_format, 0, least)
            )
            for shown, least in ((images, point), (with_room(images), lenient))
        )
        return cls(model, point, lenient, clean, roomy)


def detect(
    model: nn.Module,
    images: Sequence[CleanImage],
    trigger: Trigger | None,
    goal: Goal | None,
    image_format: str,
    seed: int,
    score: float,
) -> list[Detections]:
    """Detections of each image, boxes in pixels of the network's input, on the CPU.

    Args:
        model: in eval mode.
        images: clean.
        trigger: put on them; None for none.
        goal: says where.
        image_format: order of the channels, "BGR" or "RGB".
        seed: of the places.
        score: least score of a detection.
    """
    found: list[Detections] = [None] * len(images)  # type: ignore[list-item]
    divisor = max(1, model.backbone.size_divisibility)
    shapes = input_shapes(images)
    for group in alike(shapes, divisor):
        height, width = shapes[group[0]]
        batch_size = max(1, min(_MOST_IMAGES, _MOST_PIXELS // (height * width)))
        in_half = is_large([(height, width)]) and computes_bf16(model.device)
        for start in range(0, len(group), batch_size):
            indices = group[start : start + batch_size]
            batch = [images[index] for index in indices]
            pixels, sizes = stack_images(batch, model.device)
            if trigger is not None and goal is not None:
                places = [goal.places(image, seed) for image in batch]
                seeds = [image.seed for image in batch]
                pixels = trigger.apply(pixels, sizes, places, seeds, image_format)
            inputs = [
                {"image": each[:, :height, :width]}
                for each, (height, width) in zip(pixels, sizes, strict=True)
            ]
            with torch.autocast(model.device.type, torch.bfloat16, enabled=in_half):
                output = model.probe(inputs, with_detections=True, score_threshold=score)
            for index, instances in zip(indices, output.detections, strict=True):
                found[index] = as_detections(instances)
    return found


def success_terms(
    subject: Measured,
    images: Sequence[CleanImage],
    trigger: Trigger,
    goals: Sequence[Goal],
    image_format: str,
    seed: int,
) -> list[Terms]:
    """Hits and attempts of an effect on each image: their ratio is the attack success rate.

    Args:
        subject: the detector.
        images: those of :attr:`Measured.clean`.
        trigger: that is tried.
        goals: effect and placement; the first says where the trigger goes, the others what of its
            victims to look at besides.
        image_format: order of the channels, "BGR" or "RGB".
        seed: of the places.

    Returns:
        One of shape (G,) for each of the goals.
    """
    effect, images = goals[0].effect, goals[0].scenes(images)
    before = subject.with_room if effect.anywhere else subject.clean
    point = subject.point_of(effect)
    seen = detect(subject.model, images, trigger, goals[0], image_format, seed, point)
    rates = []
    for image, clean, triggered in zip(images, before, seen, strict=True):
        objects = Objects(image.boxes, image.classes)
        places, after = goals[0].places(image, seed), on_common_scale(triggered, point)
        rates.append([goal.effect.success(objects, places, clean, after) for goal in goals])
    counts = torch.tensor(rates, dtype=torch.float64).reshape(len(images), len(goals), 2)
    return [Terms(*each) for each in counts.permute(1, 2, 0)]
