# SPDX-License-Identifier: Apache-2.0
"""From what both heads say of images to the sums of every statistic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.modeling import ProbeOutput
from d2defense.ops import foreground_logits, inconsistency

from .terms import (
    Terms,
    confident_d_terms,
    gap_terms,
    target_mean_terms,
    tau_terms,
    true_class_terms,
    unmatched_foreground_terms,
)

STATISTICS = (
    "tau",
    "confident_d",
    "gap",
    "objects_found",
    "max_objectness",
    "max_foreground",
    "true_class",
    "unmatched_foreground",
)

#: Those that compare with objectness; there is no data for them where a detector has none.
OF_OBJECTNESS = ("tau", "confident_d", "gap", "max_objectness")

#: Free of the scale and offset of a detector's scores, and of what stock inference ranks by.
DEPLOYED_STATISTICS = (
    "scaled_foreground",
    "scaled_true_class",
    "found_at_point",
    "scaled_unmatched",
)
#: Of these, those that every object has.
OBJECT_STATISTICS = DEPLOYED_STATISTICS[:3]

# What the network computes in; statistics are always reduced from float32.
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class ObservationSettings:
    """How images are probed and proposals reduced; the values of ``DEFENSE`` of the same names.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    batch_size: int = 16
    epsilon: float = 0.1
    topk: int = 5
    objectness_floor: float = 0.8
    iou_threshold: float = 0.5
    num_bins: int = 20
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name, allowed in (
            ("batch_size", self.batch_size >= 1),
            ("epsilon", 0 <= self.epsilon < 1),
            ("topk", self.topk >= 0),
            ("objectness_floor", 0 <= self.objectness_floor <= 1),
            ("iou_threshold", 0 < self.iou_threshold <= 1),
            ("num_bins", self.num_bins >= 1),
            ("precision", self.precision in PRECISIONS),
        ):
            if not allowed:
                raise ValueError(f"{name} {getattr(self, name)} is out of range")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ObservationSettings:
        """The settings that ``DEFENSE`` gives.

        Raises:
            ValueError: a value out of range.
        """
        node = cfg.DEFENSE
        return cls(
            batch_size=node.BATCH_SIZE,
            epsilon=node.EPSILON,
            topk=node.TOPK,
            objectness_floor=node.OBJECTNESS_FLOOR,
            iou_threshold=node.IOU_THRESHOLD,
            precision=node.PRECISION,
        )


@dataclass(frozen=True)
class Observation:
    """The sums of G images, all that is kept of them.

    Attributes:
        terms: of every statistic of :data:`STATISTICS`, by name, each of shape (G,).
        deployed: of every statistic of :data:`DEPLOYED_STATISTICS`, by name, each of shape (G,);
            empty where the detector's scale was not asked for.
        by_class: of every statistic of :data:`OBJECT_STATISTICS`, over the objects of each class,
            each of shape (G, K); empty likewise.
        histogram: int64 Tensor of shape (num_bins,): inconsistency of the proposals; all 0 of a
            detector without objectness.
        ability: of images as they are, terms that say what the detector can do with them:
            ``found_any_class`` and ``object_rank``, each of shape (G,); empty under a trigger.
    """

    terms: dict[str, Terms]
    histogram: Tensor
    ability: dict[str, Terms] = field(default_factory=dict)
    deployed: dict[str, Terms] = field(default_factory=dict)
    by_class: dict[str, Terms] = field(default_factory=dict)

    @property
    def num_images(self) -> int:
        """G."""
        return len(self.terms["tau"].numerator)

    @property
    def all_terms(self) -> dict[str, Terms]:
        """Of whatever statistics it has, each of shape (G,)."""
        return self.terms | self.deployed

    def split(self, sizes: Sequence[int]) -> list[Observation]:
        """So many images each; without the histogram, which is of all of them."""
        nothing = torch.zeros_like(self.histogram)

        def split_terms(terms: dict[str, Terms]) -> list[dict[str, Terms]]:
            parts = {
                name: zip(*(p.split(sizes) for p in t), strict=True) for name, t in terms.items()
            }
            return [{name: Terms(*next(part)) for name, part in parts.items()} for _ in sizes]

        kinds = (self.terms, self.ability, self.deployed, self.by_class)
        return [
            Observation(terms, nothing, *rest)
            for terms, *rest in zip(*map(split_terms, kinds), strict=True)
        ]

    @classmethod
    def join(cls, parts: Sequence[Observation]) -> Observation:
        """The images of several observations, one after another."""
        return cls(
            _join_terms([part.terms for part in parts]),
            torch.stack([part.histogram for part in parts]).sum(0),
            *(
                _join_terms([getattr(part, name) for part in parts])
                for name in ("ability", "deployed", "by_class")
            ),
        )


def _join_terms(parts: Sequence[dict[str, Terms]]) -> dict[str, Terms]:
    return {
        name: Terms(*map(torch.cat, zip(*(part[name] for part in parts), strict=True)))
        for name in parts[0]
    }


def reduce_probe(
    output: ProbeOutput,
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    found: Tensor,
    settings: ObservationSettings,
) -> Observation:
    """From the proposals of a batch of images to its sums.

    Args:
        output: a probe of G images.
        boxes: of the objects on each image, (Mg, 4), XYXY in pixels of the network's input.
        classes: int64, of the objects on each image, (Mg,): -1 and what is none of the detector's
            classes is unknown.
        found: bool Tensor of shape (M,): which objects of all images were detected.
        settings: of the reduction.
    """
    offsets = torch.tensor([0] + [len(each) for each in boxes]).cumsum(0)
    known = output.class_logits.shape[1] - 1
    target_classes = torch.cat(list(classes))
    result = inconsistency(
        _ranked_by(output),
        output.class_logits,
        output.proposal_boxes,
        output.proposal_offsets,
        torch.cat(list(boxes)).to(output.proposal_boxes.device),
        offsets,
        torch.where(target_classes < known, target_classes, -1),
        epsilon=settings.epsilon,
        topk=settings.topk,
        objectness_floor=settings.objectness_floor,
        iou_threshold=settings.iou_threshold,
        num_bins=settings.num_bins,
    ).to_cpu()
    of_targets = {
        "gap": gap_terms(result),
        "objects_found": target_mean_terms(found),
        "max_objectness": target_mean_terms(result.target_objectness),
        "max_foreground": target_mean_terms(result.target_foreground),
        "true_class": true_class_terms(result),
    }
    terms = {
        "tau": tau_terms(result),
        "confident_d": confident_d_terms(result),
        "unmatched_foreground": unmatched_foreground_terms(result),
        **{name: value.per_image(offsets) for name, value in of_targets.items()},
    }
    histogram = result.histogram.sum(0)
    if output.objectness_logits is None:
        terms |= {name: Terms(*map(torch.zeros_like, terms[name])) for name in OF_OBJECTNESS}
        histogram = torch.zeros_like(histogram)
    return Observation({name: terms[name] for name in STATISTICS}, histogram)


def _ranked_by(output: ProbeOutput) -> Tensor:
    """What the operator takes for objectness: where there is none, the log odds of q."""
    if output.objectness_logits is not None:
        return output.objectness_logits
    return foreground_logits(output.class_logits)


def deployed_terms(
    output: ProbeOutput,
    class_logits: Tensor,
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    found: Tensor,
    settings: ObservationSettings,
) -> tuple[dict[str, Terms], dict[str, Terms]]:
    """:data:`DEPLOYED_STATISTICS` of a batch of images, and their sums over each class.

    Args:
        output: a probe of G images.
        class_logits: Tensor of shape (N, K + 1): on the scale that all detectors share.
        boxes: of the objects on each image, (Mg, 4), XYXY in pixels of the network's input.
        classes: int64, of the objects on each image, (Mg,): -1 and what is none of the detector's
            classes is unknown.
        found: bool Tensor of shape (M,): which objects of all images were detected.
        settings: of the reduction.

    Returns:
        Terms of shape (G,) by name, and Terms of shape (G, K) by name.
    """
    counts = [len(each) for each in boxes]
    offsets = torch.tensor([0, *counts]).cumsum(0)
    num_classes = class_logits.shape[1] - 1
    own = torch.cat(list(classes))
    own = torch.where(own < num_classes, own, -1)
    result = inconsistency(
        _ranked_by(output),
        class_logits,
        output.proposal_boxes,
        output.proposal_offsets,
        torch.cat(list(boxes)).to(output.proposal_boxes.device),
        offsets,
        own,
        iou_threshold=settings.iou_threshold,
    ).to_cpu()
    of_targets = {
        "scaled_foreground": target_mean_terms(result.target_foreground),
        "scaled_true_class": true_class_terms(result),
        "found_at_point": target_mean_terms(found),
    }
    terms = {name: value.per_image(offsets) for name, value in of_targets.items()}
    # Row by row: image, then class; objects of unknown class go into a column that is dropped.
    cell = torch.repeat_interleave(offsets.diff()) * (num_classes + 1)
    cell += torch.where(own >= 0, own, num_classes)
    zeros = torch.zeros(len(counts) * (num_classes + 1), dtype=torch.float64)
    by_class = {
        name: Terms(
            *(
                zeros.index_add(0, cell, part).reshape(len(counts), -1)[:, :num_classes]
                for part in value
            )
        )
        for name, value in of_targets.items()
    }
    return terms | {"scaled_unmatched": unmatched_foreground_terms(result)}, by_class


def all_proposals_tau_terms(output: ProbeOutput, settings: ObservationSettings) -> Terms:
    """Terms of tau over every proposal of an image, however low its objectness.

    The letter of the paper's definition (arXiv 2409.16057, section 3.4), which knows no ``topk``.

    Args:
        output: a probe of G images.
        settings: of the reduction; its ``topk`` is not used.

    Returns:
        Terms of shape (G,); no data where the detector has no objectness.
    """
    offsets = output.proposal_offsets
    if output.objectness_logits is None:
        nothing = torch.zeros(len(offsets) - 1, dtype=torch.float64)
        return Terms(nothing, nothing)
    boxes = output.proposal_boxes
    result = inconsistency(
        output.objectness_logits,
        output.class_logits,
        boxes,
        offsets,
        boxes.new_zeros(0, 4),
        torch.zeros_like(offsets),
        offsets.new_zeros(0),
        epsilon=settings.epsilon,
    )
    return tau_terms(result.to_cpu())
