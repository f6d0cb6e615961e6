# SPDX-License-Identifier: Apache-2.0
"""The proposal half of a probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from .regions import nearest_anchors


@PROPOSAL_GENERATOR_REGISTRY.register()
class InstrumentedRPN(RPN):
    """Detectron2's RPN, parameters and forward pass unchanged, that can be probed."""

    def probe(self, images: ImageList, features: dict[str, Tensor]) -> list[Instances]:
        """The proposals that the box head would see, with their objectness.

        Args:
            images: G images.
            features: feature maps by name, each of shape (G, C, H, W).

        Returns:
            G Instances with ``proposal_boxes`` (XYXY, pixels of the network's input) and
            ``objectness_logits``, in descending order of objectness.
        """
        proposals, _ = self(images, features, None)
        return proposals

    def region_logits(self, features: dict[str, Tensor], regions: Sequence[Tensor]) -> Tensor:
        """Objectness of regions, with gradient, apart from any selection of proposals.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            regions: G Tensors of shape (M_g, 4), XYXY in pixels of the network's input.

        Returns:
            Tensor of shape (M,): the largest logit among the anchors of largest overlap.
        """
        maps = [features[name] for name in self.in_features]
        anchors = Boxes.cat(self.anchor_generator(maps))
        per_level, _ = self.rpn_head(maps)
        # (G, A, H, W) a level to (G, all anchors) in the order of the anchors.
        logits = torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in per_level], dim=1)
        return torch.cat(
            [
                of_image[nearest_anchors(boxes, anchors)].amax(dim=1)
                for of_image, boxes in zip(logits, regions, strict=True)
            ]
        )
