# SPDX-License-Identifier: Apache-2.0
"""The proposal half of a probe."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from .regions import nearest_anchors

# Of the cells round an anchor that its objectness depends on, in each direction.
_SIDE = 3


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
        nearest = [nearest_anchors(boxes, anchors) for boxes in regions]
        cells = sum(each[:, 0].numel() for each in maps)
        if self._sees_neighbours_alone and _SIDE**2 * sum(map(Tensor.numel, nearest)) < cells:
            return self._logits_at(maps, nearest).amax(dim=1)
        per_level, _ = self.rpn_head(maps)
        # (G, A, H, W) a level to (G, all anchors) in the order of the anchors.
        logits = torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in per_level], dim=1)
        return torch.cat(
            [
                of_image[indices].amax(dim=1)
                for of_image, indices in zip(logits, nearest, strict=True)
            ]
        )

    @property
    def _sees_neighbours_alone(self) -> bool:
        """Whether what the head says of a cell depends on it and the eight round it alone."""
        head = self.rpn_head
        return type(head) is StandardRPNHead and isinstance(head.conv, Conv2d)

    def _logits_at(self, maps: Sequence[Tensor], indices: Sequence[Tensor]) -> Tensor:
        """Objectness of some anchors, the head run on the cells round each, not on whole maps.

        Args:
            maps: of each level, (G, C, H, W).
            indices: of anchors in the order of all, G of int64 (M_g, A).

        Returns:
            Tensor of shape (M, A).
        """
        image = torch.cat(
            [torch.full_like(each, number).flatten() for number, each in enumerate(indices)]
        )
        wanted = torch.cat([each.flatten() for each in indices])
        count = self.anchor_generator.num_anchors[0]
        logits, first = wanted.new_zeros(len(wanted), dtype=torch.float32), 0
        around = torch.arange(_SIDE, device=wanted.device)
        for level in maps:
            height, width = level.shape[2:]
            within = wanted - first
            here = ((within >= 0) & (within < height * width * count)).nonzero().flatten()
            first += height * width * count
            if not len(here):
                continue
            cell, anchor = within[here] // count, within[here] % count
            rows, columns = cell // width, cell % width
            # Zeros beyond the edge, as the head's own convolution has them.
            padded = F.pad(level, (_SIDE // 2,) * 4)
            patches = padded[
                image[here, None, None],
                :,
                (rows[:, None] + around)[:, :, None],
                (columns[:, None] + around)[:, None, :],
            ].permute(0, 3, 1, 2)
            ((said,), _) = self.rpn_head([patches])
            centre = said[torch.arange(len(here), device=here.device), anchor, 1, 1]
            logits = logits.index_put((here,), centre.float())
        return logits.view(-1, indices[0].shape[1])
