# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning so that two views of an image are taken for the same."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from d2defense.modeling import Opinion
from d2defense.registry import REMOVAL_REGISTRY

from .base import RemovalMethod

# Proposals of an image that are compared.
_PROPOSALS = 48


@REMOVAL_REGISTRY.register("consistency")
class Consistency(RemovalMethod):
    """Consistency: proposals say the same of two views of an image, whatever the labels.

    After CleanCLIP (Bansal et al., ICCV 2023, arXiv 2303.03323), whose self-supervised term, beside
    the task's own, breaks the shortcut from trigger to target. Decisions for detectors: the views
    differ in their pixels only (brightness, contrast, noise, a grey image, rectangles that are
    wiped out), so that the boxes stay; what must agree are the scores of both heads for the first
    view's proposals and the direction of the backbone's features at each place. The term needs no
    labels.
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.CONSISTENCY.*``."""
        # Weight of the term.
        node.WEIGHT = 1.0
        # Rectangles of an image that are wiped out in the second view, at most.
        node.WIPED = 4

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's own of both views, and ``loss_consistency``."""
        wiped = self.cfg.REMOVAL.CONSISTENCY.WIPED
        other = [{**image, "image": another_view(image["image"], wiped)} for image in batch]
        # In one pass: batch normalization sees both.
        losses, features = model.losses_and_features([*batch, *other])
        count = len(batch)
        first = {name: maps[:count] for name, maps in features.items()}
        second = {name: maps[count:] for name, maps in features.items()}
        proposals = self._proposals(model, batch, first)
        term = disagreement(
            model.opinion_on(first, proposals), model.opinion_on(second, proposals)
        ) + feature_distance(first, second)
        return losses | {"loss_consistency": self.cfg.REMOVAL.CONSISTENCY.WEIGHT * term}

    @torch.no_grad()
    def _proposals(
        self, model: nn.Module, batch: list[dict[str, Any]], features: dict[str, Tensor]
    ) -> list[Instances]:
        proposals = model.proposals_on(features, model.preprocess_image(batch))
        return [each[:_PROPOSALS] for each in proposals]


def disagreement(first: Opinion, second: Opinion) -> Tensor:
    """Symmetric Kullback-Leibler divergence of the scores, classes and objectness together.

    Args:
        first: of N proposals.
        second: of the same ones.
    """
    if not len(first.class_logits):
        return first.class_logits.sum() + second.class_logits.sum()
    one, two = first.class_logits.log_softmax(1), second.class_logits.log_softmax(1)
    classes = ((one.exp() - two.exp()) * (one - two)).sum(1).mean()
    p, q = first.objectness, second.objectness
    if p is None:
        return classes
    return classes + ((p.sigmoid() - q.sigmoid()) * (p - q)).mean()


def feature_distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> Tensor:
    """1 - cosine of the features at each place, mean over places and maps."""
    distances = [1 - F.cosine_similarity(first[name], second[name], dim=1).mean() for name in first]
    return torch.stack(distances).mean()


def another_view(image: Tensor, wiped: int) -> Tensor:
    """The image as another camera might see it; boxes stay where they are.

    Drawn from PyTorch's global generator, as a step's random numbers are.

    Args:
        image: uint8 Tensor of shape (3, H, W).
        wiped: rectangles that get one colour each, at most.
    """
    pixels = image.float()
    contrast, brightness = 0.6 + 0.8 * torch.rand(1), 80 * torch.rand(1) - 40
    pixels = (pixels - 128) * contrast + 128 + brightness
    if torch.rand(1) < 0.2:
        pixels = pixels.mean(0, keepdim=True).expand_as(pixels)
    pixels = pixels + 8 * torch.rand(1) * torch.randn_like(pixels)
    height, width = pixels.shape[1:]
    for _ in range(int(torch.randint(wiped + 1, (1,)))):
        h, w = (int(side * (0.03 + 0.12 * torch.rand(1))) + 1 for side in (height, width))
        y, x = int(torch.randint(height - h + 1, (1,))), int(torch.randint(width - w + 1, (1,)))
        pixels[:, y : y + h, x : x + w] = 255 * torch.rand(3, 1, 1)
    return pixels.round().clamp(0, 255).to(image.dtype)
