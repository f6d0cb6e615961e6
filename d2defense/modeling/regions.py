# SPDX-License-Identifier: Apache-2.0
"""What a detector says of given regions, with gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

#: Anchors of largest overlap whose objectness counts for a region.
NUM_ANCHORS = 6
#: Proposals that are judged beside a region, at most.
NUM_PROPOSALS = 3
# From this IoU on a proposal is one of a region: what training takes for foreground.
_LEAST_IOU = 0.5


@dataclass(frozen=True)
class RegionOutput:
    """A detector's opinion of M regions, of all images in order.

    Attributes:
        objectness_logits: Tensor of shape (M,): the largest among the region's anchors; None
            without objectness.
        class_logits: Tensor of shape (M, K + 1), background last, of the classifier that counts.
        overlap: Tensor of shape (M, K), generalized IoU, -1..1, of the region and the box that
            gives each class its score; None where that is the region itself.
    """

    objectness_logits: Tensor | None
    class_logits: Tensor
    overlap: Tensor | None = None


@dataclass(frozen=True)
class Opinion:
    """What a detector says of N proposals of some images.

    Attributes:
        class_logits: Tensor of shape (N, K + 1), background last.
        deltas: Tensor of shape (N, 4K) or (N, 4): how it would move them.
        objectness: Tensor of shape (N,), logits; None without objectness.
    """

    class_logits: Tensor
    deltas: Tensor
    objectness: Tensor | None


def as_proposals(
    regions: Sequence[Tensor], image_sizes: Sequence[tuple[int, int]], device: torch.device
) -> list[Instances]:
    """Regions in the form that ROI heads take, G Instances.

    Args:
        regions: G Tensors of shape (M_g, 4), XYXY in pixels of the network's input.
        image_sizes: G pairs (height, width).
        device: where they are to be.
    """
    return [
        Instances(
            size,
            proposal_boxes=Boxes(boxes.float().to(device)),
            objectness_logits=torch.zeros(len(boxes), device=device),
        )
        for boxes, size in zip(regions, image_sizes, strict=True)
    ]


def nearest_anchors(regions: Tensor, anchors: Boxes) -> Tensor:
    """Indices of the :data:`NUM_ANCHORS` anchors of largest IoU with each region, int64 (M, A)."""
    overlap = pairwise_iou(Boxes(regions.float().to(anchors.device)), anchors)
    return overlap.topk(min(NUM_ANCHORS, len(anchors)), dim=1).indices


def with_proposals(regions: Tensor, proposals: Tensor) -> Tensor:
    """Regions, and of each the first proposals that overlap it, up to :data:`NUM_PROPOSALS`.

    Args:
        regions: float (M, 4), XYXY in pixels.
        proposals: float (P, 4), likewise, by falling objectness.

    Returns:
        float (M + some, 4), the regions first.
    """
    regions = regions.float().to(proposals.device)
    overlaps = pairwise_iou(Boxes(regions), Boxes(proposals)) >= _LEAST_IOU
    first = overlaps & (overlaps.cumsum(dim=1) <= NUM_PROPOSALS)
    return torch.cat([regions, proposals[first.any(dim=0)]])
