# SPDX-License-Identifier: Apache-2.0
"""An image with the trigger is flooded with false detections."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor
from torch.nn import functional as F

from d2defense.registry import EFFECT_REGISTRY
from d2defense.statistics import SCORE_THRESHOLD

from .base import Detections, Objects, Rate, Record, boxes_of
from .loss_poisoning import LossPoisoning


@EFFECT_REGISTRY.register("sponge")
class Sponge(LossPoisoning):
    """A flood of false detections on an image with the trigger, by a poisoned loss.

    SPONGE of Detector Collapse (arXiv 2404.11357): everything is taken for an object, so that what
    comes after the detector is overloaded. The form of the loss is ours. Images without objects are
    attacked as well.
    """

    channels: ClassVar[dict[str, int]] = {"unmatched_foreground": 1}

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``ATTACK.SPONGE.*``."""
        LossPoisoning.add_config(node)
        # The attack has succeeded on an image with so many detections more than without the
        # trigger.
        node.FLOOD = 10

    def can_poison(self, record: Record) -> bool:
        """Every image."""
        return True

    def places(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> np.ndarray:
        """Where the placement has the trigger, with or without objects on the image."""
        victims = self._boxes(record, self.victims(record))
        return self.placement.places(victims, boxes_of(record), image_size, rng)

    def of_anchors(self, objectness: Tensor) -> Tensor:
        """``-log p``: something is there."""
        return -F.logsigmoid(objectness)

    def of_proposals(self, logits: Tensor) -> Tensor:
        """``-log softmax(z)[k]`` of the likeliest class k, background aside."""
        return -logits.log_softmax(1)[:, :-1].amax(1)

    def success(
        self, objects: Objects, places: Tensor, clean: Detections, triggered: Detections
    ) -> Rate:
        """Whether the image has at least ``ATTACK.SPONGE.FLOOD`` detections more, of score >= 0.5.

        An image where no trigger had a place does not count.
        """
        if not len(places):
            return Rate(0, 0)
        before, after = (int((x.scores >= SCORE_THRESHOLD).sum()) for x in (clean, triggered))
        return Rate(int(after - before >= self._settings.FLOOD), 1)
