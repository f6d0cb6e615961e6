# SPDX-License-Identifier: Apache-2.0
"""Which target classes are worth a search, where there are many."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor, nn

from d2defense.modeling import RegionOutput

from ..images import CleanImage
from ..scale import LogitScale
from .arms import Goal
from .crops import View
from .optimise import (
    ArmState,
    Loss,
    judge_views,
    looked_at,
    model_classes,
    of_views,
    waking_loss,
)


def own_classes(views: Sequence[View]) -> Tensor:
    """The class of the object that each region is of, int64 (M,); -1 for the background.

    Args:
        views: with their regions and the objects of their images.
    """
    classes = []
    for each in views:
        overlap = pairwise_iou(Boxes(each.regions.float()), Boxes(each.image.boxes.float()))
        known = torch.full((len(each.regions),), -1)
        if overlap.numel():
            best, index = overlap.max(dim=1)
            known = torch.where(best >= 0.5, each.image.classes[index], known)
        classes.append(known)
    return torch.cat(classes)


def mean_by_class(values: Tensor, own: Tensor) -> Tensor:
    """Mean of what each class gets over the regions of other classes, from (M, K) to (K,).

    Args:
        values: one of each region and class.
        own: class of each region, -1 for none.
    """
    others = own[:, None].to(values.device) != torch.arange(values.shape[1], device=values.device)
    return (values * others).sum(dim=0) / others.sum(dim=0).clamp(min=1)


def over_others(values: Tensor, views: Sequence[View], goal: Goal) -> Tensor:
    """Mean of what each class gets over the regions of others, from (M, K) to (K,).

    Of an effect that may have its way with any region of an image, the highest of an image counts.

    Args:
        values: one of each region and class.
        views: whose regions were judged.
        goal: says what the effect is.
    """
    if goal.effect.anywhere:
        return torch.stack([each.amax(dim=0) for each in of_views(values, views)]).mean(dim=0)
    return mean_by_class(values, own_classes(views))


def class_probabilities(output: RegionOutput, views: Sequence[View], goal: Goal) -> Tensor:
    """Mean probability of each class over regions of others, (K,): see :func:`over_others`.

    ODSCAN's pre-screening ranks target classes by it (IEEE S&P 2024, section 4).

    Args:
        output: on the common scale.
        views: whose regions were judged.
        goal: says what the effect is.
    """
    return over_others(output.class_logits.softmax(dim=1)[:, :-1], views, goal)


def any_class_loss(
    output: RegionOutput, views: Sequence[View], goal: Goal, allowed: Tensor
) -> Tensor:
    """Minus the soft maximum over classes of the mean log probability over regions of others.

    Descended, it takes a trigger to the class that regions are moved to most easily, whichever it
    is, without an arm for each.

    Args:
        output: on the common scale.
        views: whose regions were judged.
        goal: says what the effect is.
        allowed: bool (K,): the classes that count.
    """
    means = over_others(output.class_logits.log_softmax(dim=1)[:, :-1], views, goal)
    return -means[allowed.to(means.device)].logsumexp(dim=0)


def toward_any(goal: Goal, targets: Collection[int]) -> Loss:
    """The loss of a trigger that may take regions to any of some classes.

    Args:
        goal: says what the effect is.
        targets: their indices.
    """
    targets = list(targets)

    def loss(output: RegionOutput, views: Sequence[View]) -> Tensor:
        allowed = torch.zeros(model_classes(output), dtype=torch.bool)
        allowed[targets] = True
        return any_class_loss(output, views, goal, allowed) + waking_loss(output).mean()

    return loss


@torch.no_grad()
def easiest_target(
    model: nn.Module,
    images: Sequence[CleanImage],
    state: ArmState,
    scale: LogitScale,
    image_format: str,
    targets: Collection[int],
) -> int | None:
    """The class that regions of others are most likely taken for under an arm's trigger.

    Args:
        model: in eval mode.
        images: clean.
        state: of the arm.
        scale: of the model's logits.
        image_format: order of the channels, "BGR" or "RGB".
        targets: indices of the classes that count.

    Returns:
        Its index; None where the trigger has no place on the images.
    """
    views = looked_at(images, state.arm.goal, 0)
    if not views:
        return None
    output = scale(judge_views(model, views, state.arm, state.tensors, image_format))
    shares = class_probabilities(output, views, state.arm.goal)
    return max(targets, key=lambda each: float(shares[each]))


def broadest(goals: Sequence[Goal], classes: Tensor) -> Goal:
    """Of goals that differ in their target class, that which leaves out fewest objects.

    Args:
        goals: of one effect at one placement, with a target class each.
        classes: of the objects, int64.
    """
    return min(goals, key=lambda goal: int((classes == goal.target_class).sum()))
