# SPDX-License-Identifier: Apache-2.0
"""The proposal half of a probe."""

from __future__ import annotations

from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import ImageList, Instances
from torch import Tensor


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
