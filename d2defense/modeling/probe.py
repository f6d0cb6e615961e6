# SPDX-License-Identifier: Apache-2.0
"""What a probe of a detector returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor


@dataclass(frozen=True)
class ProbeOutput:
    """A detector's opinion of its proposals, for a batch of G images with N proposals in all.

    In a two-stage detector both heads' opinion of the same proposals. A one-stage detector has one
    opinion: its proposals are the boxes that it is surest of.

    All of it is float32, whatever precision the network ran in.

    Attributes:
        proposal_boxes: Tensor of shape (N, 4), XYXY in pixels of the network's input.
        objectness_logits: Tensor of shape (N,), descending inside an image; None where the
            detector has no objectness.
        classifier_logits: for each classifier of the box head a Tensor of shape (N, K + 1),
            background last. There is one but for Cascade R-CNN (one a stage) and Double-Head-Ext
            (convolution head, fully connected head).
        proposal_offsets: int64 Tensor of shape (G + 1,); image g owns rows
            ``proposal_offsets[g] .. proposal_offsets[g + 1]``. On the CPU.
        image_sizes: (height, width) of each image as the network saw it.
        deployed: (N, K + 1) logits whose softmax are the scores that stock inference ranks by,
            where they are not those of the last classifier: it averages a cascade's stages and
            fuses the heads of Double-Head-Ext; None else.
        detections: stock detections of each image in the same pixels (``pred_boxes``, ``scores``,
            ``pred_classes``), or None where they were not asked for.
    """

    proposal_boxes: Tensor
    objectness_logits: Tensor | None
    classifier_logits: tuple[Tensor, ...]
    proposal_offsets: Tensor
    image_sizes: list[tuple[int, int]]
    detections: list[Instances] | None = None
    deployed: Tensor | None = None

    @property
    def deployed_logits(self) -> Tensor:
        """(N, K + 1) logits whose softmax are the scores that stock inference ranks by."""
        return self.class_logits if self.deployed is None else self.deployed

    @property
    def class_logits(self) -> Tensor:
        """(N, K + 1) logits of the classifier that counts: the last one."""
        return self.classifier_logits[-1]

    def split(self) -> list[ProbeOutput]:
        """The probe of each image on its own, G of them; tensors are views of this one's."""
        bounds = self.proposal_offsets.tolist()
        return [
            ProbeOutput(
                proposal_boxes=self.proposal_boxes[start:stop],
                objectness_logits=(
                    None if self.objectness_logits is None else self.objectness_logits[start:stop]
                ),
                classifier_logits=tuple(logits[start:stop] for logits in self.classifier_logits),
                proposal_offsets=self.proposal_offsets.new_tensor([0, stop - start]),
                image_sizes=[size],
                detections=None if self.detections is None else [self.detections[image]],
                deployed=None if self.deployed is None else self.deployed[start:stop],
            )
            for image, ((start, stop), size) in enumerate(
                zip(pairwise(bounds), self.image_sizes, strict=True)
            )
        ]

    @classmethod
    def join(cls, parts: Sequence[ProbeOutput]) -> ProbeOutput:
        """The images of several probes of one detector, one after another, without detections."""
        counts = torch.cat([part.proposal_offsets.diff() for part in parts])
        return cls(
            proposal_boxes=torch.cat([part.proposal_boxes for part in parts]),
            objectness_logits=_joined([part.objectness_logits for part in parts]),
            classifier_logits=tuple(
                map(torch.cat, zip(*(part.classifier_logits for part in parts), strict=True))
            ),
            proposal_offsets=F.pad(counts.cumsum(0), (1, 0)),
            image_sizes=[size for part in parts for size in part.image_sizes],
            deployed=_joined([part.deployed for part in parts]),
        )

    @classmethod
    def from_proposals(
        cls,
        proposals: list[Instances],
        classifier_logits: Sequence[Tensor],
        detections: list[Instances] | None = None,
        deployed: Tensor | None = None,
    ) -> ProbeOutput:
        """Join the per-image ``proposals`` (boxes and objectness logits) with their class logits.

        Args:
            proposals: G Instances with ``proposal_boxes`` and, of a detector that has it,
                ``objectness_logits``.
            classifier_logits: for each classifier a Tensor of shape (N, K + 1) over the proposals
                of all images, in order.
            detections: see :attr:`detections`.
            deployed: see :attr:`deployed`.
        """
        counts = torch.tensor([0] + [len(x) for x in proposals])
        boxes = torch.cat([x.proposal_boxes.tensor for x in proposals])
        return cls(
            proposal_boxes=boxes.float(),
            objectness_logits=_joined(
                [
                    x.objectness_logits.float() if x.has("objectness_logits") else None
                    for x in proposals
                ]
            ),
            classifier_logits=tuple(logits.float() for logits in classifier_logits),
            proposal_offsets=counts.cumsum(0),
            image_sizes=[x.image_size for x in proposals],
            detections=detections,
            deployed=deployed,
        )


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    return None if any(part is None for part in parts) else torch.cat(list(parts))


class BoxFeatures(NamedTuple):
    """What classifies N proposals sees of them."""

    pooled: Tensor
    """(N, C): the backbone's features of the box, their mean."""
    classified: Tensor
    """(N, F): what the classifier is given."""


class Heard(NamedTuple):
    """What stock inference of G images returned, and what it came from."""

    detections: list[dict[str, Any]]
    """G dicts, as stock inference returns them, in pixels of the image files."""
    probe: ProbeOutput
    """Both heads' opinion of all proposals, without detections."""
    features: BoxFeatures
    """What was seen of the same proposals."""
