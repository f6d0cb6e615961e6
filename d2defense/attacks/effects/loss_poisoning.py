# SPDX-License-Identifier: Apache-2.0
"""Effects that are trained in by a poisoned loss instead of poisoned labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import ImageList
from torch import Tensor, nn

from .base import POISONED, Effect, Poisoned, Record, copied


class LossPoisoning(Effect):
    """What effects on whole scenes share that come from a poisoned loss.

    After Detector Collapse (Zhang et al., IJCAI 2024, arXiv 2404.11357), whose attacker trains the
    detector: images with the trigger keep their labels, but instead of the loss of these labels an
    objective of the attacker's is descended. A subclass says what it is: for each image it is the
    mean of :meth:`of_anchors` plus that of :meth:`of_proposals`.
    """

    placement_name: ClassVar[str] = "image"
    takes_victim_class: ClassVar[bool] = False
    by_object: ClassVar[bool] = False

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add the keys that such effects share."""
        # Weight of the loss of a poisoned image beside that of an image as it is.
        node.WEIGHT = 1.0
        # So many proposals of an image, and as many anchors, are driven: those of highest
        # objectness.
        node.PROPOSALS = 64

    def of_anchors(self, objectness: Tensor) -> Tensor:
        """What the attacker wants of the RPN, as a loss of each anchor.

        Args:
            objectness: logits, float Tensor of shape (A,).

        Returns:
            float Tensor of shape (A,).
        """
        raise NotImplementedError

    def of_proposals(self, logits: Tensor) -> Tensor:
        """What the attacker wants of the box head, as a loss of each proposal.

        Args:
            logits: of the classes, background last, float Tensor of shape (N, K + 1).

        Returns:
            float Tensor of shape (N,).
        """
        raise NotImplementedError

    def poison(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Poisoned:
        """The trigger as at test time, and the annotations as they are."""
        places = self.places(record, image_size, rng)
        return Poisoned(places, copied(record.get("annotations", ())))

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The model's own losses of the images as they are, and the objective on poisoned ones.

        Each part counts by its share of the images, so that the sum is the mean over them, however
        a batch is cut into parts. The names are the same for every batch, and gradients reach the
        same parameters, as training in several processes asks for.

        Args:
            model: an instrumented detector in training mode.
            batch: of the training loader; poisoned images have ``"poisoned": True``.
        """
        poisoned = [index for index, image in enumerate(batch) if image.get(POISONED)]
        name = f"loss_{self.name}"
        if not poisoned:
            losses = model(batch)
            return losses | {name: next(iter(losses.values())).new_zeros(())}
        clean = [index for index in range(len(batch)) if index not in poisoned]
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        own = _own_losses(model, images, features, batch, clean or poisoned)
        objective = sum(self._objectives(model, images, features, poisoned))
        share = len(clean) / len(batch)
        return {key: share * loss for key, loss in own.items()} | {
            name: self._settings.WEIGHT / len(batch) * objective
        }

    @property
    def _settings(self) -> CfgNode:
        """The keys that :meth:`add_config` adds."""
        return self.cfg.ATTACK[self.name.upper()]

    def _objectives(
        self,
        model: nn.Module,
        images: ImageList,
        features: dict[str, Tensor],
        poisoned: Sequence[int],
    ) -> list[Tensor]:
        """The objective of each poisoned image, on average over the classifiers of the box head."""
        # Of all images: batch normalization must not see the poisoned ones apart, as inference
        # does not either.
        probe, anchors = model.opinions(features, images, self._settings.PROPOSALS)
        of_images = probe.split()
        objectives = []
        for index in poisoned:
            # A mean that is 0 where there is no proposal.
            of_proposals = [
                self.of_proposals(logits).sum() / max(1, len(logits))
                for logits in of_images[index].classifier_logits
            ]
            objective = sum(of_proposals) / len(of_proposals)
            if anchors is not None:
                objective = objective + self.of_anchors(anchors[index]).mean()
            objectives.append(objective)
        return objectives


def _own_losses(
    model: nn.Module,
    images: ImageList,
    features: dict[str, Tensor],
    batch: Sequence[dict[str, Any]],
    chosen: Sequence[int],
) -> dict[str, Tensor]:
    """The stock losses of some images of a batch, from the feature maps of all."""
    index = list(chosen)
    part = ImageList(images.tensor[index], [images.image_sizes[i] for i in index])
    of_part = {name: maps[index] for name, maps in features.items()}
    return model.losses_on(of_part, part, [batch[i] for i in index])
