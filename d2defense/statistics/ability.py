# SPDX-License-Identifier: Apache-2.0
"""What a detector can do with images as they are: the ground that every verdict stands on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from d2defense.modeling import ProbeOutput
from d2defense.ops import foreground

from .found import IOU_THRESHOLD
from .terms import Terms, target_mean_terms

# IoU below which a proposal is taken to lie beside an object.
_APART = 0.1


def object_rank_terms(output: ProbeOutput, boxes: Sequence[Tensor]) -> Terms:
    """How surely the box head ranks objects above background, of each image.

    For one object: the share of the image's proposals that touch no object (IoU < 0.1 with all)
    whose q lies below the largest q of the proposals on the object (IoU >= 0.5); equal ones count
    one half, and a proposal on the object there must be. It is the area under the ROC curve of q,
    one half for a head that cannot tell objects from background, whatever the scale of its logits.

    Args:
        output: a probe of G images.
        boxes: of the objects on each image, (Mg, 4), XYXY in pixels of the network's input.

    Returns:
        Terms of shape (G,); images without such proposals or without objects add nothing.
    """
    parts = []
    for image, targets in zip(output.split(), boxes, strict=True):
        q = foreground(image.class_logits).double().cpu()
        overlap = pairwise_iou(Boxes(targets), Boxes(image.proposal_boxes.cpu()))
        apart = q[(overlap < _APART).all(dim=0)]
        if not len(targets) or not len(apart):
            parts.append((0.0, 0.0))
            continue
        on_object = torch.where(overlap >= IOU_THRESHOLD, q[None], -1.0).max(dim=1).values
        below = (apart[None] < on_object[:, None]).double().mean(dim=1)
        equal = (apart[None] == on_object[:, None]).double().mean(dim=1)
        ranks = torch.where(on_object >= 0, below + equal / 2, 0.0)
        parts.append((float(ranks.sum()), float(len(ranks))))
    return Terms(*torch.tensor(parts, dtype=torch.float64).reshape(-1, 2).T)


def found_terms(found: Tensor, counts: Sequence[int]) -> Terms:
    """Share of objects found, from which of them were.

    Args:
        found: bool Tensor of shape (M,), over the objects of all images.
        counts: objects of each of the G images.

    Returns:
        Terms of shape (G,).
    """
    offsets = torch.tensor([0, *counts]).cumsum(0)
    return target_mean_terms(found).per_image(offsets)
