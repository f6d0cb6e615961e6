# SPDX-License-Identifier: Apache-2.0
"""What a screening method is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.modeling import InstrumentedDetector
from d2defense.registry import SCREENING_REGISTRY

from ..passes import SeenImage


class ImageLook(NamedTuple):
    """What a method says of one image."""

    score: float
    """The larger, the more the image looks like one with a trigger; any scale."""
    boxes: Tensor
    """(B, 4), XYXY in pixels of the network's input: the places that were looked at."""
    scores: Tensor
    """(B,), of each place, on the scale of the image's score."""
    passes: float
    """Forward passes over the image, the detector's ordinary one included; of a pass over a part
    of the image's pixels, that share."""


class ScreeningMethod:
    """A way to tell that an image carries a trigger, by the name that ``SCREENING.METHOD`` gives.

    It is made for one detector, learns from clean images what is normal (:meth:`fit`), and then
    scores images one by one (:meth:`look`), from several threads at once.

    Args:
        model: in eval mode.
        node: ``SCREENING.<NAME>``, the method's own settings.

    Attributes:
        floor: the score of an image on which there is nothing to look at; -inf where a method has
            none.

    Raises:
        ValueError: a setting that cannot be used.
    """

    floor: float = -math.inf

    def __init__(self, model: InstrumentedDetector, node: CfgNode) -> None:
        self.model = model
        self.node = node

    @property
    def name(self) -> str:
        """The name under which the class is registered."""
        return SCREENING_REGISTRY.name_of(type(self))

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Put the method's own keys with their defaults into ``SCREENING.<NAME>``."""

    @torch.no_grad()
    def fit(self, images: Sequence[SeenImage]) -> list[float]:
        """Learn from clean images, without labels, what is normal.

        By default there is nothing to learn, and the images are scored.

        Args:
            images: seen anew each time that one is asked for, so that not all are in memory.

        Returns:
            Scores of clean images that nothing else was learnt from: the null.

        Raises:
            FitError: too few images.
        """
        return [self.look(images[index]).score for index in range(len(images))]

    def look(self, seen: SeenImage) -> ImageLook:
        """Score one image.

        Args:
            seen: the image, and what the detector's ordinary pass has left.
        """
        raise NotImplementedError


def look_of_boxes(boxes: Tensor, scores: Tensor, passes: float, floor: float) -> ImageLook:
    """The look whose image is as suspicious as its most suspicious box.

    Args:
        boxes: (B, 4), XYXY in pixels of the network's input.
        scores: (B,).
        passes: see :class:`ImageLook`.
        floor: the image's score where there is no box.
    """
    score = float(scores.max().clamp(min=floor)) if len(scores) else floor
    return ImageLook(score, boxes.cpu(), scores.detach().to(torch.float32).cpu(), passes)
