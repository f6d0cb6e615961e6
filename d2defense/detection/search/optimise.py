# SPDX-License-Identifier: Apache-2.0
"""Finding the trigger of an arm by gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2defense.devices import computes_bf16
from d2defense.modeling import RegionOutput

from ..images import CleanImage
from ..observing import stack_images
from ..scale import LogitScale
from .arms import Arm, Goal
from .crops import View, is_large, view

# Adam's, as of ODSCAN (IEEE S&P 2024, section 5): a short memory, since a search has few steps.
_BETAS = (0.5, 0.9)
# Of the range of a trigger's values, a step.
_LEARNING_RATE = 0.15
# What the RPN's opinion counts beside that of the box head: to silence it, to wake it.
_SILENCE, _WAKE = 0.5, 0.25
# What it counts that the box is where it should be, beside what is seen; by 1 it stays too small.
_PLACE = 3.0
# After so many steps what the RPN proposes by now is judged beside the fixed regions, so that a
# trigger cannot fool these alone.
_REFRESHED = 10
# Of the regions of an image any of which will do, those that a step looks at: all are many.
_ANYWHERE = 24
# Sets the choice of crops apart from other random numbers.
_SALT = 0x63726F70


#: From what a detector says, on the common scale, and what it was said of, to a number.
Loss = Callable[[RegionOutput, Sequence[View]], Tensor]


class NotFiniteError(ValueError):
    """What a detector says under a trigger is not finite, or its gradient: nothing can be found."""


@dataclass
class ArmState:
    """An arm under way.

    Attributes:
        arm: what is tried.
        tensors: of the trigger, as far as optimised.
        optimizer: of the tensors.
        steps: taken so far.
        effect: mean probability of the wanted class at the last step, 0..1.
        has_gradient: whether what the detector says has depended on the trigger in any step; None
            as long as it has looked at no image.
        on_references: the same effect on the references when it was last held against them, 0..1;
            None if it was not yet.
    """

    arm: Arm
    tensors: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    steps: int = 0
    effect: float = 0.0
    has_gradient: bool | None = None
    on_references: float | None = None

    @classmethod
    def begin(
        cls, arm: Arm, device: torch.device, tensors: Mapping[str, Tensor] | None = None
    ) -> ArmState:
        """The arm at its start.

        Args:
            arm: what is to be tried.
            device: of the tensors.
            tensors: of the trigger to start from, which stay as they are; the arm's if None.
        """
        ranges = arm.start.ranges()
        tensors = {
            name: tensor.detach().clone().to(device).requires_grad_()
            for name, tensor in (tensors or arm.start.tensors()).items()
        }
        groups = [
            {"params": [tensor], "lr": _LEARNING_RATE * (ranges[name][1] - ranges[name][0])}
            for name, tensor in tensors.items()
        ]
        return cls(arm, tensors, torch.optim.Adam(groups, betas=_BETAS))

    @property
    def device(self) -> torch.device:
        """Of the tensors."""
        return next(iter(self.tensors.values())).device

    def step(
        self,
        model: nn.Module,
        images: Sequence[CleanImage],
        scale: LogitScale,
        fmt: str,
        seed: int,
        loss_of: Loss | None = None,
    ) -> None:
        """One step on a batch of images; nothing happens where no trigger has a place on them.

        Args:
            model: in eval mode.
            images: clean.
            scale: of the model's logits.
            fmt: order of the channels, "BGR" or "RGB".
            seed: of the places.
            loss_of: what is descended; :func:`arm_loss` if None.

        Raises:
            NotFiniteError: the loss or its gradient is not finite.
        """
        self.steps += 1
        views = looked_at(images, self.arm.goal, seed)
        if not views:
            return
        # What another loss looks at is told by the regions alone.
        refresh = loss_of is None and self.steps % _REFRESHED == 0
        output = scale(judge_views(model, views, self.arm, self.tensors, fmt, refresh))
        loss = arm_loss(output, self.arm, views) if loss_of is None else loss_of(output, views)
        self.optimizer.zero_grad()
        loss.backward()
        gradients = [each.grad for each in self.tensors.values() if each.grad is not None]
        gradient = torch.stack([each.abs().sum() for each in gradients]).sum()
        if not torch.isfinite(loss.detach() + gradient):
            raise NotFiniteError(f"{self.arm.name}: what is searched by is not finite")
        self.has_gradient = bool(self.has_gradient or gradient > 0)
        self.optimizer.step()
        with torch.no_grad():
            for name, (low, high) in self.arm.start.ranges().items():
                self.tensors[name].clamp_(low, high)
        self.effect = wanted_probability(output, self.arm, views)


def model_classes(output: RegionOutput) -> int:
    """The number of classes, K."""
    return output.class_logits.shape[1] - 1


def judge_views(
    model: nn.Module,
    views: Sequence[View],
    arm: Arm,
    tensors: Mapping[str, Tensor] | None,
    image_format: str,
    refresh: bool = False,
) -> RegionOutput:
    """What the model says of the regions under the trigger, in one forward pass.

    Args:
        model: in eval mode.
        views: of :func:`looked_at`, one at least.
        arm: says what is put on the places.
        tensors: of the trigger; None for no trigger.
        image_format: order of the channels, "BGR" or "RGB".
        refresh: judge overlapping proposals of the triggered images, too, but of an effect that may
            have its way with any region, which are told apart by image.
    """
    refresh = refresh and not arm.goal.effect.anywhere
    pixels, sizes = stack_images([each.image for each in views], model.device)
    pixels = pixels.float()
    if tensors is not None:
        places, seeds = [each.places for each in views], [each.image.seed for each in views]
        pixels = arm.start.apply(pixels, sizes, places, seeds, image_format, tensors)
    inputs = [
        {"image": each[:, :height, :width]}
        for each, (height, width) in zip(pixels, sizes, strict=True)
    ]
    # Faster, and near enough to find a trigger; what it does is measured apart.
    in_half = computes_bf16(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=in_half):
        output = model.judge(inputs, [each.regions for each in views], refresh)
    objectness = output.objectness_logits
    return replace(
        output,
        objectness_logits=None if objectness is None else objectness.float(),
        class_logits=output.class_logits.float(),
    )


def looked_at(images: Sequence[CleanImage], goal: Goal, seed: int) -> list[View]:
    """The parts of images that a step looks at, those with a region.

    Images none of whose regions fits into a crop are left out as long as others have one; else one
    of them is taken whole. So it is where the effect may be anywhere, far from the trigger.

    Args:
        images: clean.
        goal: says where the trigger goes and what it is to change.
        seed: of places and crops.
    """
    views, large = [], []
    for image in goal.scenes(images):
        places = goal.places(image, seed)
        regions = goal.regions(image, places)
        if len(regions):
            rng = np.random.default_rng([seed, image.seed, _SALT])
            is_apart = False
            if goal.effect.anywhere:
                regions = regions[torch.from_numpy(rng.permutation(len(regions))[:_ANYWHERE])]
                is_apart = is_large([tuple(image.image.shape[1:])])
            part = None if is_apart else view(image, places, regions, rng)
            views += [part] if part else []
            large += [] if part else [View(image, places, regions)]
    return views or large[:1]


def arm_loss(output: RegionOutput, arm: Arm, views: Sequence[View]) -> Tensor:
    """Cross entropy of the regions to the wanted class, and to what the RPN should say.

    ODSCAN's targeted loss (IEEE S&P 2024, section 5), background among the targets; of a ghost also
    :func:`placing_loss`. Of an effect that may have its way with any region of an image, the soft
    minimum over these.

    Args:
        output: on the common scale.
        arm: says which class is wanted.
        views: whose regions were judged.
    """
    count, effect = len(output.class_logits), arm.goal.effect
    wanted = effect.wanted_class(model_classes(output))
    target = torch.full((count,), wanted, device=output.class_logits.device)
    losses = F.cross_entropy(output.class_logits, target, reduction="none")
    if wanted != model_classes(output):
        losses = losses + waking_loss(output)
        # An object has its box already.
        if not effect.takes_victim_class:
            losses = losses + placing_loss(output, wanted)
    elif output.objectness_logits is not None:
        losses = losses + _SILENCE * F.softplus(output.objectness_logits)
    if not effect.anywhere:
        return losses.mean()
    return torch.stack([-(-each).logsumexp(0) for each in of_views(losses, views)]).mean()


def of_views(values: Tensor, views: Sequence[View]) -> tuple[Tensor, ...]:
    """What was said of the regions of each view, (M, ...) in parts.

    Args:
        values: of all regions, without refreshed ones.
        views: whose regions were judged.
    """
    return values.split([len(each.regions) for each in views])


def placing_loss(output: RegionOutput, wanted: int) -> Tensor:
    """Low where the boxes of the wanted class are the regions, (M,) or ().

    0 of a detector that judges the regions themselves.

    A detection elsewhere, or of another size, is none of the object that should be there.

    Args:
        output: of regions.
        wanted: index of the class.
    """
    if output.overlap is None:
        return output.class_logits.new_zeros(())
    return _PLACE * (1 - output.overlap[:, wanted])


def waking_loss(output: RegionOutput) -> Tensor:
    """Low where the RPN proposes the regions, (M,) or (); 0 of a detector without one."""
    if output.objectness_logits is None:
        return output.class_logits.new_zeros(())
    return _WAKE * F.softplus(-output.objectness_logits)


def wanted_probability(output: RegionOutput, arm: Arm, views: Sequence[View]) -> float:
    """Mean probability of the wanted class over the regions, on the common scale.

    Of an effect that may have its way with any region of an image, that of the likeliest counts.
    """
    wanted = arm.goal.effect.wanted_class(model_classes(output))
    values = output.class_logits.detach().softmax(dim=1)[:, wanted]
    if arm.goal.effect.anywhere:
        values = torch.stack([each.amax() for each in of_views(values, views)])
    return float(values.mean())
