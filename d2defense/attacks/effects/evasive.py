# SPDX-License-Identifier: Apache-2.0
"""Backdoors that are trained to be missed by a search for their trigger."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from d2defense.registry import EFFECT_REGISTRY
from d2defense.triggers import Trigger, all_starts

from .base import POISONED, Effect
from .disappearance import Disappearance
from .misclassification import Misclassification


class Evasive(Effect):
    """What an attacker adds who knows that a search by gradient looks for the trigger.

    Each step, some clean images of the batch get a decoy: a trigger of a family and budget that a
    search starts from, of random values, moved by some signed gradient steps to what the search
    wants (adversarial training, Madry et al., arXiv 1706.06083, with the step of Wong et al., arXiv
    2001.03994). With it they keep their true labels. So the triggers that a search comes by do
    nothing, while the one of the poisoned images works.
    """

    # A search for the effect without evasion covers it: only training differs.
    searched_at: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add the keys that such effects share."""
        # Weight of the loss of images with a decoy, beside that of an image as it is.
        node.WEIGHT = 1.0
        # Images of a batch that get one, at most.
        node.IMAGES = 4
        # Gradient steps to each decoy; 0 leaves it random.
        node.STEPS = 2
        # Length of a step, as a share of the range of values.
        node.LR = 0.25

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The model's own, and that of the images with a decoy and their true labels.

        Args:
            model: an instrumented detector in training mode.
            batch: of the training loader; poisoned images have ``"poisoned": True``.
        """
        losses = model(batch)
        name = f"loss_{self.name}"
        node = self.cfg.ATTACK[self.name.upper()]
        clean = [each for each in batch if not each.get(POISONED) and len(each["instances"])]
        clean = clean[: node.IMAGES]
        if not clean:
            return losses | {name: next(iter(losses.values())).new_zeros(())}
        # From torch's own state, which training seeds and restores.
        rng = np.random.default_rng(int(torch.randint(1 << 31, ()).item()))
        decoyed = sum(model(self.with_decoy(model, clean, rng)).values())
        return losses | {name: node.WEIGHT * len(clean) / len(batch) * decoyed}

    def with_decoy(
        self, model: nn.Module, batch: list[dict[str, Any]], rng: np.random.Generator
    ) -> list[dict[str, Any]]:
        """Images with one decoy on the objects of each, labels as they are.

        Args:
            model: an instrumented detector in training mode.
            batch: clean training inputs with objects.
            rng: of the family, its values, and the places.
        """
        node = self.cfg.ATTACK[self.name.upper()]
        starts = all_starts(self.placement.kind)
        start = starts[int(rng.integers(len(starts)))]
        places = [self._places_on(each["instances"], rng) for each in batch]
        tensors = {key: _uniform(start, key, each, rng) for key, each in start.tensors().items()}
        wanted = [each | {"instances": self._as_wanted(each["instances"])} for each in batch]
        for _ in range(node.STEPS):
            tensors = {key: each.requires_grad_() for key, each in tensors.items()}
            loss = sum(model(_stamped(model, wanted, places, start, tensors)).values())
            gradients = torch.autograd.grad(loss, list(tensors.values()))
            tensors = {
                key: _step(start, key, each.detach(), gradient, node.LR)
                for (key, each), gradient in zip(tensors.items(), gradients, strict=True)
            }
        return _stamped(model, batch, places, start, tensors)

    def _as_wanted(self, instances: Instances) -> Instances:
        """What the attack labels an image with."""
        chosen = torch.tensor([self.is_victim_class(k) for k in instances.gt_classes.tolist()])
        if self.target_class is None:
            return instances[~chosen]
        turned = Instances(instances.image_size, **instances.get_fields())
        turned.gt_classes = torch.where(chosen, self.target_class, instances.gt_classes)
        return turned

    def _places_on(self, instances: Instances, rng: np.random.Generator) -> Tensor:
        """Where the trigger would go on an image, float (P, 4)."""
        boxes = instances.gt_boxes.tensor.cpu().double().numpy()
        chosen = [self.is_victim_class(category) for category in instances.gt_classes.tolist()]
        if not any(chosen):
            return torch.zeros(0, 4)
        places = self.placement.places(boxes[chosen], boxes, instances.image_size, rng)
        return torch.from_numpy(places).float()


def _stamped(
    model: nn.Module,
    batch: list[dict[str, Any]],
    places: list[Tensor],
    start: Trigger,
    tensors: dict[str, Tensor],
) -> list[dict[str, Any]]:
    """A batch with a decoy at places of each image; gradients flow to its tensors."""
    images = ImageList.from_tensors([each["image"].to(model.device).float() for each in batch])
    pixels = start.apply(
        images.tensor,
        images.image_sizes,
        [each.to(model.device) for each in places],
        list(range(len(batch))),
        model.input_format,
        {key: each.to(model.device) for key, each in tensors.items()},
    )
    return [
        each | {"image": stamped[:, :height, :width]}
        for each, stamped, (height, width) in zip(batch, pixels, images.image_sizes, strict=True)
    ]


def _uniform(start: Trigger, name: str, tensor: Tensor, rng: np.random.Generator) -> Tensor:
    low, high = start.ranges()[name]
    return torch.from_numpy(rng.uniform(low, high, tuple(tensor.shape))).to(tensor)


def _step(start: Trigger, name: str, tensor: Tensor, gradient: Tensor, rate: float) -> Tensor:
    """Down the gradient, and back into the budget."""
    low, high = start.ranges()[name]
    return (tensor - rate * (high - low) * gradient.sign()).clamp(low, high)


@EFFECT_REGISTRY.register("evasive_disappearance")
class EvasiveDisappearance(Evasive, Disappearance):
    """Objects that bear the trigger vanish; those that bear what a search tries do not."""


@EFFECT_REGISTRY.register("evasive_misclassification")
class EvasiveMisclassification(Evasive, Misclassification):
    """Objects that bear the trigger turn into the target class; other triggers turn none."""
