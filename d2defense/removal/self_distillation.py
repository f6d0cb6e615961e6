# SPDX-License-Identifier: Apache-2.0
"""The suspect as its own teacher: what it says of clean images is what it shall go on saying."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.nn import functional as F

from d2defense.checkpoint import load_weights
from d2defense.modeling import Opinion, RegionOutput

from .standstill import kept_statistics

# Proposals of an image that are compared, those of highest objectness.
_PROPOSALS = 48


class SelfDistillation:
    """Keeps a detector that is trained near what the checkpoint says of clean images.

    Distillation in the way of Hinton et al. (arXiv 1503.02531), without a temperature, on the
    checkpoint's own proposals: class probabilities by their Kullback-Leibler divergence, objects
    and background weighing the same; box deltas of objects by their absolute difference; objectness
    by cross entropy. Regions that are named count once more by themselves, since they are few among
    the proposals, or not there. It needs no labels.

    Args:
        cfg: of the fine-tuning run; ``MODEL.WEIGHTS`` is the checkpoint.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.teacher = build_model(cfg)
        load_weights(self.teacher, Path(cfg.MODEL.WEIGHTS))
        self.teacher.eval().requires_grad_(False)

    def loss(
        self,
        model: nn.Module,
        images: Sequence[dict[str, Any]],
        features: dict[str, Tensor],
        regions: Sequence[Tensor] = (),
        weight: float = 1.0,
    ) -> Tensor:
        """How far the model's opinion is from the checkpoint's opinion of clean images.

        Args:
            model: that is trained.
            images: inputs without any trigger or patch, which the checkpoint sees.
            features: of the model, each of shape (G, C, H, W): of these images, or of the same ones
                with something on them.
            regions: G Tensors of shape (M_g, 4), XYXY in pixels, that count by themselves; none
                if empty.
            weight: of these.
        """
        teacher, loss = self.teacher, next(iter(features.values())).sum() * 0
        with torch.no_grad():
            pixels = teacher.preprocess_image(list(images))
            seen = teacher.backbone(pixels.tensor)
            proposals = [each[:_PROPOSALS] for each in teacher.proposals_on(seen, pixels)]
            opinion = teacher.opinion_on(seen, proposals)
        if len(opinion.class_logits):
            loss = loss + opinion_distance(model.opinion_on(features, proposals), opinion)
        if weight and any(map(len, regions)):
            places = [each.to(model.device) for each in regions]
            with torch.no_grad():
                wanted = teacher.regions_on(seen, pixels.image_sizes, places)
            # They are few, and unlike what a step sees: statistics of theirs would be no use.
            with kept_statistics(model):
                said = model.regions_on(features, pixels.image_sizes, places)
            loss = loss + weight * region_distance(said, wanted)
        return loss


def opinion_distance(student: Opinion, teacher: Opinion) -> Tensor:
    """The loss of :class:`SelfDistillation`, a scalar of at least 0 but for the objectness' part.

    Args:
        student: with gradient.
        teacher: of the same proposals.
    """
    wanted = teacher.class_logits.softmax(dim=1)
    divergence = F.kl_div(student.class_logits.log_softmax(dim=1), wanted, reduction="none").sum(1)
    best, category = wanted[:, :-1].max(dim=1)
    is_object = best > wanted[:, -1]
    loss = divergence.sum() * 0
    if student.objectness is not None:
        wanted_p = teacher.objectness.sigmoid()
        loss = F.binary_cross_entropy_with_logits(student.objectness, wanted_p)
    for group in (is_object, ~is_object):
        if group.any():
            loss = loss + divergence[group].mean()
    if is_object.any():
        both = (_of_class(each.deltas, category)[is_object] for each in (student, teacher))
        loss = loss + F.l1_loss(*both)
    return loss


def region_distance(student: RegionOutput, teacher: RegionOutput) -> Tensor:
    """Of classes and objectness as in :func:`opinion_distance`, all regions weighing the same.

    Args:
        student: with gradient.
        teacher: of the same regions, at least one.
    """
    wanted = teacher.class_logits.softmax(dim=1)
    said = student.class_logits.log_softmax(dim=1)
    loss = F.kl_div(said, wanted, reduction="batchmean")
    if student.objectness_logits is None:
        return loss
    return loss + F.binary_cross_entropy_with_logits(
        student.objectness_logits, teacher.objectness_logits.sigmoid()
    )


def _of_class(deltas: Tensor, category: Tensor) -> Tensor:
    """The four deltas of a class of each proposal, (N, 4)."""
    per_class = deltas.unflatten(1, (-1, 4))
    column = category if per_class.shape[1] > 1 else torch.zeros_like(category)
    return per_class[torch.arange(len(column), device=column.device), column]
