# SPDX-License-Identifier: Apache-2.0
"""TRACE (Zhang et al., CVPR 2025)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from d2defense.registry import SCREENING_REGISTRY

from ..blending import blend, confidence, crop, resized
from ..null import FitError
from ..passes import SeenImage, see_images
from .base import ImageLook, ScreeningMethod

# IoU of a pasted object with what is found on it, and of a new detection with an old one.
_ON_PROBE, _MOVED = 0.3, 0.05
_SAME = 0.5
_TRIES = 100


@SCREENING_REGISTRY.register("trace")
class Trace(ScreeningMethod):
    """TRACE (CVPR 2025): answers under 30 backgrounds and with 250 probes in the foreground.

    Contextual consistency: the image is blended with clean backgrounds; the mean change of a
    detection's confidence, the least over detections, is small where a trigger holds it. Focal
    consistency: natural objects are pasted at random places; the variance of what is found there is
    large where a trigger is. Score: sigmoid(100 focal) - sigmoid(100 contextual). 81 passes.

    Taken from clean images here: the backgrounds, and the probe, which is their surest detection.
    The authors' check of boxes that look like pictures of their class by themselves needs such
    pictures and is left out.
    """

    def __init__(self, model: torch.nn.Module, node: CfgNode) -> None:
        super().__init__(model, node)
        self._backgrounds: list[Tensor] = []
        self._probe: tuple[Tensor, int] | None = None

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """The method's keys, with the authors' values."""
        # Backgrounds, one pass each.
        node.BACKGROUNDS = 30
        # Of the background in a blend.
        node.OPACITY = 0.15
        # Passes with pasted objects.
        node.QUERIES = 50
        # Pasted objects in each.
        node.PROBES = 5
        # Of the image's shorter side, that of a pasted object.
        node.PROBE_SIZE = 0.12
        # A detection counts from this score on.
        node.MIN_SCORE = 0.25
        # Of the places of the pasted objects.
        node.SEED = 0

    @torch.no_grad()
    def fit(self, images: Sequence[SeenImage]) -> list[float]:
        """As :meth:`ScreeningMethod.fit`; backgrounds and probe are of the first images."""
        count = self.node.BACKGROUNDS
        if len(images) <= count:
            raise FitError(f"{len(images)} clean images are too few: {count} are backgrounds")
        first = [images[index] for index in range(count)]
        self._backgrounds = [each.image for each in first]
        surest = max(first, key=lambda each: float(each.scores.max()) if len(each.scores) else -1)
        if not len(surest.scores):
            raise FitError("nothing is detected on the first clean images")
        row = int(surest.scores.argmax())
        self._probe = crop(surest.image, surest.boxes[row].tolist()), int(surest.classes[row])
        return [self.look(images[index]).score for index in range(count, len(images))]

    @torch.no_grad()
    def look(self, seen: SeenImage) -> ImageLook:
        """As :meth:`ScreeningMethod.look`."""
        chosen = seen.scores >= self.node.MIN_SCORE
        boxes, classes, scores = (each[chosen] for each in (seen.boxes, seen.classes, seen.scores))
        changes = self._contextual(seen.image, boxes, classes, scores)
        focal = _sigmoid(100 * self._focal(seen.image, boxes, classes))
        contextual = float(changes.min()) if len(changes) else 0.0
        of_boxes = focal - torch.sigmoid(100 * changes)
        passes = 1.0 + len(self._backgrounds) + self.node.QUERIES
        return ImageLook(focal - _sigmoid(100 * contextual), boxes.cpu(), of_boxes.cpu(), passes)

    def _contextual(self, image: Tensor, boxes: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
        """Mean change of each detection's confidence; without any, of the image's largest."""
        sums = torch.zeros(max(1, len(boxes)), device=boxes.device)
        blends = (blend(image, each, self.node.OPACITY) for each in self._backgrounds)
        for again in see_images(self.model, blends):
            if len(boxes):
                sums += (confidence(boxes, classes, again) - scores).abs()
            elif len(again.scores):
                sums += again.scores.max()
        return sums / max(1, len(self._backgrounds))

    def _focal(self, image: Tensor, boxes: Tensor, classes: Tensor) -> float:
        """Variance of what is found at pasted objects."""
        picture, label = self._probe
        height, width = image.shape[1:]
        side = min(max(8, round(min(height, width) * self.node.PROBE_SIZE)), height, width)
        probe = resized(picture, (side, side)).round().clamp(0, 255).to(image)
        rng = np.random.default_rng([self.node.SEED, _seed(image)])
        queries = [
            probe_places(rng, (height, width), side, self.node.PROBES)
            for _ in range(self.node.QUERIES)
        ]
        pasted = (paste_at(image, probe, places) for places in queries)
        signals: list[float] = []
        for places, again in zip(queries, see_images(self.model, pasted), strict=True):
            for left, top in places:
                place = boxes.new_tensor([[left, top, left + side, top + side]])
                signals.append(_signal(place, label, again, boxes, classes))
        return float(np.var(signals)) if signals else 0.0


def probe_places(
    rng: np.random.Generator, size: tuple[int, int], side: int, count: int
) -> list[tuple[int, int]]:
    """Left top corners of squares that do not touch; fewer than ``count`` where they do not fit."""
    places: list[tuple[int, int]] = []
    for _ in range(count * _TRIES):
        left, top = (int(rng.integers(0, end - side + 1)) for end in (size[1], size[0]))
        if all(abs(left - x) >= side or abs(top - y) >= side for x, y in places):
            places.append((left, top))
        if len(places) == count:
            break
    return places


def paste_at(image: Tensor, picture: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
    """A copy of the image with a picture at some places, given by their left top corners."""
    copy = image.clone()
    for left, top in places:
        copy[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return copy


def _signal(place: Tensor, label: int, again: SeenImage, boxes: Tensor, classes: Tensor) -> float:
    """Confidence of a pasted object plus the mean one of what emerges in its middle."""
    if not len(again.boxes):
        return 0.0
    overlap = pairwise_iou(Boxes(place), Boxes(again.boxes))[0]
    own = torch.where((overlap >= _ON_PROBE) & (again.classes == label), overlap, -1.0)
    best = int(own.argmax())
    has_own = float(own[best]) >= 0
    middles = (again.boxes[:, :2] + again.boxes[:, 2:]) / 2
    emerged = ((middles >= place[:, :2]) & (middles <= place[:, 2:])).all(dim=1)
    if has_own:
        emerged[best] = False
    if len(boxes):
        known = pairwise_iou(Boxes(again.boxes), Boxes(boxes))
        same = again.classes[:, None] == classes[None]
        emerged &= ~(((known > _MOVED) & same) | (known >= _SAME)).any(dim=1)
    shift = float(again.scores[emerged].mean()) if emerged.any() else 0.0
    return (float(again.scores[best]) if has_own else 0.0) + shift


def _sigmoid(value: float) -> float:
    return float(torch.sigmoid(torch.tensor(value)))


def _seed(image: Tensor) -> int:
    """Of the image's own pixels, so that the same image gets the same places."""
    content = image.to(torch.uint8).cpu().numpy().tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
