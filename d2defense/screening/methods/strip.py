# SPDX-License-Identifier: Apache-2.0
"""STRIP (Gao et al., ACSAC 2019), on detections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import SCREENING_REGISTRY

from ..blending import blend, entropy, matched
from ..null import FitError
from ..passes import SeenImage, see_images
from .base import ImageLook, ScreeningMethod, look_of_boxes

# Above any entropy of natural logarithms over fewer than e^20 classes.
_NOTHING = -20.0


@SCREENING_REGISTRY.register("strip")
class Strip(ScreeningMethod):
    """STRIP (arXiv 1902.06531): whole images blended with clean ones; what stays sure is odd.

    Section 3: the entropy of a classifier's answers to N superimposed images, averaged; a trigger
    keeps it low. A detector answers box by box: of each detection, the entropy of the class scores
    of what is found at its place (IoU at least 0.5) after blending, background where nothing is.
    """

    floor = _NOTHING

    def __init__(self, model: torch.nn.Module, node: CfgNode) -> None:
        super().__init__(model, node)
        self._clean: list[Tensor] = []

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """The method's keys."""
        # Clean images that each image is blended with.
        node.BLENDS = 20
        # Of the clean image in a blend.
        node.OPACITY = 0.5
        # A detection counts from this score on.
        node.MIN_SCORE = 0.5

    @torch.no_grad()
    def fit(self, images: Sequence[SeenImage]) -> list[float]:
        """As :meth:`ScreeningMethod.fit`; the first images are those to blend with."""
        count = self.node.BLENDS
        if len(images) <= count:
            raise FitError(f"{len(images)} clean images are too few: {count} are blended with")
        self._clean = [images[index].image for index in range(count)]
        return [self.look(images[index]).score for index in range(count, len(images))]

    @torch.no_grad()
    def look(self, seen: SeenImage) -> ImageLook:
        """As :meth:`ScreeningMethod.look`."""
        chosen = seen.scores >= self.node.MIN_SCORE
        boxes = seen.boxes[chosen]
        sums = torch.zeros(len(boxes), device=boxes.device)
        blends = (blend(seen.image, clean, self.node.OPACITY) for clean in self._clean)
        for again in see_images(self.model, blends):
            sums += matched(boxes, again, entropy(again.probe.class_logits))
        scores = -sums / max(1, len(self._clean))
        return look_of_boxes(boxes, scores, 1.0 + len(self._clean), _NOTHING)
