# SPDX-License-Identifier: Apache-2.0
"""Detector Cleanse (BadDet, Chan et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import SCREENING_REGISTRY

from ..blending import blend, crop, entropy, matched, whole_pixels
from ..null import FitError
from ..passes import SeenImage, see_images
from .base import ImageLook, ScreeningMethod, look_of_boxes

# Where there is no detection: below any distance.
_NOTHING = -1.0


@SCREENING_REGISTRY.register("detector_cleanse")
class DetectorCleanse(ScreeningMethod):
    """Detector Cleanse (arXiv 2205.14497, section 5): clean features blended into each box.

    Of each detection, the mean entropy of what is found at its place (IoU at least 0.5) after its
    box was blended with N clean features, one pass each. The paper calls an image poisoned where
    it lies outside of m ± delta, with m and delta of clean boxes; the score here is its distance
    from the median of clean boxes, and the null gives delta.
    """

    floor = _NOTHING

    def __init__(self, model: torch.nn.Module, node: CfgNode) -> None:
        super().__init__(model, node)
        self._features: list[Tensor] = []
        self._middle = 0.0

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """The method's keys."""
        # Clean features: detections cut out of clean images (the paper: 100).
        node.FEATURES = 100
        # Of the feature in a blend.
        node.OPACITY = 0.5
        # A detection counts from this score on.
        node.MIN_SCORE = 0.5

    @torch.no_grad()
    def fit(self, images: Sequence[SeenImage]) -> list[float]:
        """As :meth:`ScreeningMethod.fit`; features are cut out of the first images."""
        self._features, used = [], 0
        while len(self._features) < self.node.FEATURES:
            if used >= len(images) - 1:
                raise FitError(
                    f"{len(images)} clean images are too few for {self.node.FEATURES} features"
                )
            seen = images[used]
            self._features += [crop(seen.image, box) for box in self._boxes(seen).tolist()]
            used += 1
        del self._features[self.node.FEATURES :]
        entropies = [self._entropies(images[index]) for index in range(used, len(images))]
        everything = torch.cat(entropies)
        if not len(everything):
            raise FitError("nothing is detected on the clean images")
        self._middle = float(everything.median())
        return [self._score(each) for each in entropies]

    @torch.no_grad()
    def look(self, seen: SeenImage) -> ImageLook:
        """As :meth:`ScreeningMethod.look`."""
        boxes, entropies = self._boxes(seen), self._entropies(seen)
        passes = 1.0 + len(boxes) * len(self._features)
        return look_of_boxes(boxes, (entropies - self._middle).abs(), passes, _NOTHING)

    def _boxes(self, seen: SeenImage) -> Tensor:
        return seen.boxes[seen.scores >= self.node.MIN_SCORE]

    def _score(self, entropies: Tensor) -> float:
        distances = (entropies - self._middle).abs()
        return float(distances.max()) if len(distances) else _NOTHING

    def _entropies(self, seen: SeenImage) -> Tensor:
        """Mean entropy of each detection, float (B,)."""
        boxes = self._boxes(seen)
        sums = torch.zeros(len(boxes))
        for row in range(len(boxes)):
            blends = (
                paste(seen.image, feature, boxes[row].tolist(), self.node.OPACITY)
                for feature in self._features
            )
            for again in see_images(self.model, blends):
                values = entropy(again.probe.class_logits)
                sums[row] += float(matched(boxes[row : row + 1], again, values))
        return sums / max(1, len(self._features))


def paste(image: Tensor, feature: Tensor, box: Sequence[float], opacity: float) -> Tensor:
    """A copy of the image with a feature, resized, blended into a box."""
    left, top, right, bottom = whole_pixels(box, tuple(image.shape[1:]))
    copy = image.clone()
    copy[:, top:bottom, left:right] = blend(copy[:, top:bottom, left:right], feature, opacity)
    return copy
