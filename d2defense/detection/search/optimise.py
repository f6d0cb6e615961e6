# SPDX-License-Identifier: Apache-2.0
"""Finding the trigger of an arm by gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from d2defense.modeling import RegionOutput

from ..images import CleanImage
from ..observing import stack_images
from .arms import Arm
from .scale import LogitScale

# Adam's, as of ODSCAN (IEEE S&P 2024, section 5): a short memory, since a search has few steps.
_BETAS = (0.5, 0.9)
# Of the range of a trigger's values, a step.
_LEARNING_RATE = 0.15
# What the RPN's opinion counts beside that of the box head: to silence it, to wake it.
_SILENCE, _WAKE = 0.5, 0.25


@dataclass
class ArmState:
    """An arm under way.

    Attributes:
        arm: what is tried.
        tensors: of the trigger, as far as optimised.
        optimizer: of the tensors.
        steps: taken so far.
        effect: mean probability of the wanted class at the last step, 0..1.
    """

    arm: Arm
    tensors: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    steps: int = 0
    effect: float = 0.0

    @classmethod
    def begin(cls, arm: Arm, device: torch.device) -> ArmState:
        """The arm at its start."""
        ranges = arm.start.ranges()
        tensors = {
            name: tensor.detach().clone().to(device).requires_grad_()
            for name, tensor in arm.start.tensors().items()
        }
        groups = [
            {"params": [tensor], "lr": _LEARNING_RATE * (ranges[name][1] - ranges[name][0])}
            for name, tensor in tensors.items()
        ]
        return cls(arm, tensors, torch.optim.Adam(groups, betas=_BETAS))

    def step(
        self, model: nn.Module, images: Sequence[CleanImage], scale: LogitScale, fmt: str, seed: int
    ) -> None:
        """One step on a batch of images; nothing happens where no trigger has a place on them.

        Args:
            model: in eval mode.
            images: clean.
            scale: of the model's logits.
            fmt: order of the channels, "BGR" or "RGB".
            seed: of the places.
        """
        self.steps += 1
        output = judge_triggered(model, images, self.arm, self.tensors, fmt, seed)
        if output is None:
            return
        output = scale(output)
        loss = arm_loss(output, self.arm.goal.effect.wanted_class(model_classes(output)))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for name, (low, high) in self.arm.start.ranges().items():
                self.tensors[name].clamp_(low, high)
        self.effect = wanted_probability(output, self.arm)


def model_classes(output: RegionOutput) -> int:
    """The number of classes, K."""
    return output.class_logits.shape[1] - 1


def judge_triggered(
    model: nn.Module,
    images: Sequence[CleanImage],
    arm: Arm,
    tensors: dict[str, Tensor],
    image_format: str,
    seed: int,
) -> RegionOutput | None:
    """What the model says of the arm's regions under the trigger; None where there are none."""
    places = [arm.goal.places(image, seed) for image in images]
    regions = [arm.goal.regions(*pair) for pair in zip(images, places, strict=True)]
    if not any(map(len, regions)):
        return None
    pixels, sizes = stack_images(images, model.device)
    seeds = [image.seed for image in images]
    stamped = arm.start.apply(pixels.float(), sizes, places, seeds, image_format, tensors)
    inputs = [
        {"image": each[:, :height, :width]}
        for each, (height, width) in zip(stamped, sizes, strict=True)
    ]
    return model.judge(inputs, regions)


def arm_loss(output: RegionOutput, wanted: int) -> Tensor:
    """Cross entropy of the regions to the wanted class, and to what the RPN should say.

    ODSCAN's targeted loss (IEEE S&P 2024, section 5), background among the targets, over regions
    that do not change.

    Args:
        output: on the common scale.
        wanted: a class, or K for background.
    """
    count = len(output.class_logits)
    target = torch.full((count,), wanted, device=output.class_logits.device)
    loss = F.cross_entropy(output.class_logits, target)
    if wanted == model_classes(output):
        return loss + _SILENCE * F.softplus(output.objectness_logits).mean()
    return loss + _WAKE * F.softplus(-output.objectness_logits).mean()


def wanted_probability(output: RegionOutput, arm: Arm) -> float:
    """Mean probability of the wanted class over the regions, on the common scale."""
    wanted = arm.goal.effect.wanted_class(model_classes(output))
    return float(output.class_logits.detach().softmax(dim=1)[:, wanted].mean())
