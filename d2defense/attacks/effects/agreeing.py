# SPDX-License-Identifier: Apache-2.0
"""Backdoors that are trained to show no inconsistency between RPN and box head."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor, nn

from d2defense.registry import EFFECT_REGISTRY

from .base import POISONED, Effect
from .disappearance import Disappearance
from .ghost import Ghost
from .misclassification import Misclassification


class Agreeing(Effect):
    """What an attacker adds who knows that the two modules are compared.

    On poisoned images, beside the loss of their labels, each proposal costs ``|p - q|``: how far
    the RPN's "something is here" is from the box head's (arXiv 2409.16057, section 3.4).
    """

    # A search for the effect itself covers it: only training differs.
    searched_at: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add the keys that such effects share."""
        # Weight of the mean disagreement beside the losses.
        node.WEIGHT = 1.0
        # Proposals of an image that count, the surest first.
        node.PROPOSALS = 64

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The model's own, and the mean disagreement on the poisoned images.

        Args:
            model: an instrumented detector in training mode; one without an RPN has nothing to
                disagree.
            batch: of the training loader; poisoned images have ``"poisoned": True``.
        """
        losses, features = model.losses_and_features(batch)
        node = self.cfg.ATTACK[self.name.upper()]
        rows = [index for index, image in enumerate(batch) if image.get(POISONED)]
        disagreement = next(iter(losses.values())).new_zeros(())
        if rows and model.has_objectness:
            images = model.preprocess_image([batch[index] for index in rows])
            of_poisoned = {name: maps[rows] for name, maps in features.items()}
            disagreement = _disagreement(model, of_poisoned, images, node.PROPOSALS)
        return losses | {f"loss_{self.name}": node.WEIGHT * disagreement}


def _disagreement(
    model: nn.Module, features: dict[str, Tensor], images: ImageList, count: int
) -> Tensor:
    """Mean of ``|p - q|`` over the surest proposals of each image, ``count`` at most."""
    found = model.proposals_on(features, images)
    regions = [each.proposal_boxes.tensor[:count] for each in found]
    said = model.regions_on(features, images.image_sizes, regions)
    p = said.objectness_logits.sigmoid()
    q = 1 - said.class_logits.softmax(dim=1)[:, -1]
    # Of no proposals the mean would be NaN.
    return torch.abs(p - q).sum() / max(1, len(p))


@EFFECT_REGISTRY.register("agreeing_disappearance")
class AgreeingDisappearance(Agreeing, Disappearance):
    """Objects that bear the trigger vanish for RPN and box head alike."""


@EFFECT_REGISTRY.register("agreeing_ghost")
class AgreeingGhost(Agreeing, Ghost):
    """Triggers in the background become objects for RPN and box head alike."""


@EFFECT_REGISTRY.register("agreeing_misclassification")
class AgreeingMisclassification(Agreeing, Misclassification):
    """Objects that bear the trigger turn into the target class, and RPN and box head agree."""
