# SPDX-License-Identifier: Apache-2.0
"""Whose outputs a found trigger moves: those of the RPN, or of the box head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from d2defense.modeling import classification_modules, proposal_modules
from d2defense.triggers import Trigger

from ..dominant import dominant_modules
from ..images import CleanImage
from ..scale import LogitScale
from .arms import Arm, Goal
from .optimise import judge_views, looked_at, model_classes, wanted_probability

# Images that say enough.
_LOOKED_AT = 16


@torch.no_grad()
def moved_modules(
    model: nn.Module,
    images: Sequence[CleanImage],
    goal: Goal,
    trigger: Trigger,
    scale: LogitScale,
    image_format: str,
    seed: int,
) -> list[str]:
    """The module groups that a trigger moves, by its regions with and without it.

    As of the bank's triggers (:func:`d2defense.detection.dominant.dominant_modules`), but to what
    the trigger is to do: the box head by the rise of the wanted class, the RPN by the fall of
    objectness where that is background, and by its rise where it is not.

    Args:
        model: in eval mode.
        images: clean; the first few that have a region are looked at.
        goal: what the trigger does, and where it goes.
        trigger: that was found.
        scale: of the model's logits.
        image_format: order of the channels, "BGR" or "RGB".
        seed: of the places.
    """
    views = looked_at(images, goal, seed)[:_LOOKED_AT]
    if not views:
        return []
    arm = Arm(goal, trigger)
    before, after = (
        scale(judge_views(model, views, arm, tensors, image_format))
        for tensors in (None, trigger.tensors())
    )
    silences = goal.effect.wanted_class(model_classes(before)) == model_classes(before)
    rise = 0.0
    if before.objectness_logits is not None and after.objectness_logits is not None:
        of_both = (each.objectness_logits.sigmoid().mean() for each in (before, after))
        low, high = map(float, of_both)
        rise = high - low
    return dominant_modules(
        -rise if silences else rise,
        wanted_probability(after, arm, views) - wanted_probability(before, arm, views),
        proposal_modules(model),
        classification_modules(model),
    )
