# SPDX-License-Identifier: Apache-2.0
"""Adversarial fine-tuning that knows what an attack on a detector is after."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional as F

from d2defense.registry import REMOVAL_REGISTRY

from ..standstill import standing_still
from .base import RemovalMethod

# Proposals of an image among which those on objects are looked for.
_PROPOSALS = 48
# From which IoU on a proposal is on an object.
_MATCHED = 0.5


@REMOVAL_REGISTRY.register("adversarial")
class DetectionAwareAdversarial(RemovalMethod):
    """Detection-aware adversarial fine-tuning: objects must survive an attack on each image.

    In the way of Dunnett et al., arXiv 2605.05928, of which only the abstract was at hand. The
    inner attack does not know what the backdoor does: a soft gate weighs, object by object, a step
    towards misclassification and one towards disappearance, the one that is nearer to success the
    more. The outer loss is on predictions that lie on objects only, with two parts: the true class,
    and that something is there. Decisions: the attack is a signed gradient on the image within a
    bound, the objectives are margins of logits at the true boxes, the gate is a softmax over them,
    and the detector's own loss of the clean images stays beside the outer one.
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.ADVERSARIAL.*``."""
        # Largest change of a value, of the range.
        node.BOUND = 0.06
        # Steps of the attack.
        node.STEPS = 3
        # Step of the attack, of its bound.
        node.STEP = 0.5
        # Of the gate: the smaller, the more the nearer branch counts alone.
        node.TEMPERATURE = 1.0
        # Weight of the outer loss.
        node.WEIGHT = 1.0

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's own on clean images; ``loss_matched`` on attacked ones."""
        attacked = self._attacked(model, batch)
        # In one pass: batch normalization sees both.
        images = model.preprocess_image([*batch, *attacked])
        features = model.backbone(images.tensor)
        count = len(batch)
        clean = {name: maps[:count] for name, maps in features.items()}
        part = type(images)(images.tensor[:count], images.image_sizes[:count])
        instances = [each["instances"].to(model.device) for each in batch]
        own = model.losses_on(clean, part, batch)
        other = {name: maps[count:] for name, maps in features.items()}
        rest = type(images)(images.tensor[count:], images.image_sizes[count:])
        matched = self._matched_loss(model, rest, other, instances)
        weight = self.cfg.REMOVAL.ADVERSARIAL.WEIGHT
        return own | {"loss_matched": weight * matched}

    def _attacked(self, model: nn.Module, batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The images, each with the perturbation that comes nearest to an attack's success."""
        settings = self.cfg.REMOVAL.ADVERSARIAL
        bound = 255 * settings.BOUND
        boxes = [each["instances"].gt_boxes.tensor for each in batch]
        classes = torch.cat([each["instances"].gt_classes for each in batch]).to(model.device)
        if not len(classes):
            return batch
        clean = shown = [each["image"].to(model.device).float() for each in batch]
        with standing_still(model):
            for _ in range(settings.STEPS):
                shown = [image.detach().requires_grad_() for image in shown]
                output = model.judge([{"image": image} for image in shown], boxes)
                loss = soft_branch(output.class_logits, classes, settings.TEMPERATURE).sum()
                gradients = torch.autograd.grad(loss, shown)
                shown = [
                    torch.minimum(
                        torch.maximum(
                            image.detach() - settings.STEP * bound * gradient.sign(), start - bound
                        ),
                        start + bound,
                    ).clamp(0, 255)
                    for image, start, gradient in zip(shown, clean, gradients, strict=True)
                ]
        return [{**each, "image": image} for each, image in zip(batch, shown, strict=True)]

    def _matched_loss(
        self,
        model: nn.Module,
        images: Any,
        features: dict[str, Tensor],
        instances: list[Instances],
    ) -> Tensor:
        """The dual loss over the proposals on objects, and over the objects' own boxes."""
        proposals = model.proposals_on(features, images)
        regions, classes = [], []
        for found, truth in zip(proposals, instances, strict=True):
            boxes = Boxes.cat([truth.gt_boxes, found[:_PROPOSALS].proposal_boxes])
            if not len(truth):
                regions.append(boxes[:0])
                continue
            overlap, nearest = pairwise_iou(boxes, truth.gt_boxes).max(dim=1)
            on_object = overlap >= _MATCHED
            regions.append(boxes[on_object])
            classes.append(truth.gt_classes[nearest[on_object]])
        if not classes:
            return next(iter(features.values())).sum() * 0
        output = model.regions_on(features, images.image_sizes, [each.tensor for each in regions])
        return dual_loss(output.class_logits, output.objectness_logits, torch.cat(classes))


def soft_branch(logits: Tensor, classes: Tensor, temperature: float) -> Tensor:
    """What the inner attack descends, for each object: both branches, by a soft gate.

    Misclassification: margin of the true class over the likeliest other one; disappearance: margin
    of the true class over background. The gate is ``softmax(-margin / temperature)``.

    Args:
        logits: Tensor of shape (M, K + 1), background last.
        classes: int64 Tensor of shape (M,): the true ones.
        temperature: of the gate.

    Returns:
        Tensor of shape (M,).
    """
    true = logits.gather(1, classes[:, None])[:, 0]
    others = logits[:, :-1].scatter(1, classes[:, None], float("-inf"))
    disappearance = true - logits[:, -1]
    if others.shape[1] < 2:
        return disappearance
    branches = torch.stack([true - others.amax(dim=1), disappearance], dim=1)
    gate = (-branches.detach() / temperature).softmax(dim=1)
    return (gate * branches).sum(dim=1)


def dual_loss(logits: Tensor, objectness: Tensor | None, classes: Tensor) -> Tensor:
    """The outer loss: the true class, and that something is there.

    Args:
        logits: of predictions on objects, Tensor of shape (M, K + 1), background last.
        objectness: of the same, logits, Tensor of shape (M,); None without objectness.
        classes: int64 Tensor of shape (M,): of the objects.
    """
    something = logits[:, :-1].logsumexp(dim=1) - logits[:, -1]
    loss = F.cross_entropy(logits[:, :-1], classes) + F.softplus(-something).mean()
    return loss if objectness is None else loss + F.softplus(-objectness).mean()
