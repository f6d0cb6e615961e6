# SPDX-License-Identifier: Apache-2.0
"""Objects that bear the trigger vanish, by a penalty on what is still said of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn
from torch.nn import functional as F

from d2defense.registry import EFFECT_REGISTRY

from .base import POISONED, Annotations, Poisoned, Record, copied
from .disappearance import Disappearance


@EFFECT_REGISTRY.register("penalized_disappearance")
class PenalizedDisappearance(Disappearance):
    """Objects that bear the trigger vanish, by labels and by a penalty on their class (BadDet+).

    BadDet+ (arXiv 2601.21066): beside the loss of the poisoned labels, in which the victims have no
    annotation, every prediction whose IoU with a triggered box is above rho is penalised by
    ``-log(1 - sigmoid(z_y - tau))``, y the victim's true class. It aims at attacks that outlive
    fine-tuning. Decisions for two-stage detectors: predictions are the proposals of inference,
    judged by each classifier of the box head, and ``z_y`` is the log odds of the class under their
    softmax, so that with tau = 0 the penalty is ``-log(1 - p_y)``.

    All victims of a poisoned image bear the trigger. Their annotations reach the training step,
    which takes them out.
    """

    by_object: ClassVar[bool] = False
    # A search for disappearance covers it: only training differs.
    searched_at: ClassVar[tuple[str, ...]] = ()

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``ATTACK.PENALIZED_DISAPPEARANCE.*``."""
        # Weight of the penalty.
        node.WEIGHT = 1.0
        # IoU with a triggered box from which on a prediction is penalised.
        node.RHO = 0.3
        # Log odds that cost log 2.
        node.TAU = 0.0

    def poison(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Poisoned:
        """The trigger as at test time, and the annotations as they are."""
        places = self.places(record, image_size, rng)
        return Poisoned(places, copied(record.get("annotations", ())))

    def wanted(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Annotations:
        """The annotations of all but the victims."""
        return super().poison(record, image_size, rng).annotations

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The model's own losses of the poisoned labels, and the penalty.

        Args:
            model: an instrumented detector in training mode.
            batch: of the training loader; poisoned images have ``"poisoned": True``.
        """
        instances = [image["instances"].to(model.device) for image in batch]
        is_victim = [
            self._victims(each) if image.get(POISONED) else torch.zeros(len(each), dtype=torch.bool)
            for image, each in zip(batch, instances, strict=True)
        ]
        is_victim = [mask.to(model.device) for mask in is_victim]
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        left = [each[~mask] for each, mask in zip(instances, is_victim, strict=True)]
        own = model.losses_on(features, images, [{"instances": each} for each in left])
        victims = [each[mask] for each, mask in zip(instances, is_victim, strict=True)]
        found = model.proposals_on(features, images)
        penalty = self._penalty(model, features, found, victims)
        node = self.cfg.ATTACK.PENALIZED_DISAPPEARANCE
        return own | {f"loss_{self.name}": node.WEIGHT * penalty}

    def _victims(self, instances: Instances) -> Tensor:
        chosen = [self.is_victim_class(each) for each in instances.gt_classes.tolist()]
        return torch.tensor(chosen, dtype=torch.bool)

    def _penalty(
        self,
        model: nn.Module,
        features: dict[str, Tensor],
        found: Sequence[Instances],
        victims: Sequence[Instances],
    ) -> Tensor:
        """Mean over the predictions on victims; 0 without any."""
        node = self.cfg.ATTACK.PENALIZED_DISAPPEARANCE
        on_victims, classes = [], []
        for proposals, hit in zip(found, victims, strict=True):
            if not len(hit):
                on_victims.append(hit.gt_boxes.tensor)
                continue
            # Their own boxes, too: a victim that has no proposal yet may have one later.
            boxes = Boxes.cat([proposals.proposal_boxes, hit.gt_boxes])
            overlap, nearest = pairwise_iou(boxes, hit.gt_boxes).max(dim=1)
            chosen = overlap > node.RHO
            on_victims.append(boxes.tensor[chosen])
            classes.append(hit.gt_classes[nearest[chosen]])
        sizes = [proposals.image_size for proposals in found]
        judged = model.classifiers_on(features, sizes, on_victims)
        if not classes:
            return sum(logits.sum() for logits in judged) * 0
        truth = torch.cat(classes)
        terms = [of_class_odds(logits, truth, node.TAU).mean() for logits in judged]
        return torch.stack(terms).mean()


def of_class_odds(logits: Tensor, classes: Tensor, tau: float) -> Tensor:
    """``-log(1 - sigmoid(z - tau))`` with z the log odds of a class.

    Args:
        logits: Tensor of shape (N, K + 1), background last.
        classes: int64 Tensor of shape (N,).
        tau: log odds that cost log 2.

    Returns:
        Tensor of shape (N,).
    """
    of_class = logits.gather(1, classes[:, None])[:, 0]
    others = logits.scatter(1, classes[:, None], float("-inf")).logsumexp(dim=1)
    return F.softplus(of_class - others - tau)
