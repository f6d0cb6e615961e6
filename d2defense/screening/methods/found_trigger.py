# SPDX-License-Identifier: Apache-2.0
"""Ours: what the trigger that a scan has recovered does inside the detector, seen again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from d2defense.detection import load_bank
from d2defense.registry import SCREENING_REGISTRY
from d2defense.triggers import Trigger

from ..normality import Scale, shrunk_covariance
from ..null import FitError
from ..passes import SeenImage, see
from ..regions import Regions, regions_of
from .base import ImageLook, ScreeningMethod, look_of_boxes

_FOLDS = 4
_SAME = 0.5
# Of the covariance of features, what is taken as the same in every direction.
_SHRINKAGE = 0.1
# Stamped places on which the answer changes: with fewer there is no direction to learn.
_LEAST_CHANGED = 10
_FLOOR = -10.0


@SCREENING_REGISTRY.register("found_trigger")
class FoundTrigger(ScreeningMethod):
    """One pass: features that look like those under the trigger that a scan has recovered.

    What a search recovers works like the attacker's trigger and rarely looks like it, so pixels do
    not match; what it does to the box head's features does. The trigger is stamped on detections
    and on unclaimed proposals of the clean images. Of the places whose answer changes, Fisher's
    linear discriminant (1936) against the places of clean images gives a direction; an image's
    places are scored by it.
    """

    floor = _FLOOR

    def __init__(self, model: torch.nn.Module, node: CfgNode) -> None:
        super().__init__(model, node)
        if not node.FILE:
            raise ValueError(
                "SCREENING.FOUND_TRIGGER.FILE names no trigger bank: give the trigger.yaml of a "
                "scan's output"
            )
        self._triggers = load_bank(Path(node.FILE))
        self._direction: _Direction | None = None

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """The method's keys."""
        # trigger.yaml that `scan --search` has left, or another trigger bank.
        node.FILE = ""
        # A detection counts from this score on.
        node.MIN_SCORE = 0.5
        # Places of one image: at most so many detections.
        node.DETECTED = 20
        # And so many proposals that touch none.
        node.UNCLAIMED = 8

    @torch.no_grad()
    def fit(self, images: Sequence[SeenImage]) -> list[float]:
        """As :meth:`ScreeningMethod.fit`; each image is scored by what other images taught."""
        clean, stamped = [], []
        for index in range(len(images)):
            seen = images[index]
            clean.append(self._regions(seen))
            stamped.append([self._changed(seen, clean[-1], each) for each in self._triggers])
        fold = np.arange(len(clean)) % _FOLDS
        parts = [
            _Direction.of(
                [each for each, own in zip(clean, fold, strict=True) if own != part],
                [each for each, own in zip(stamped, fold, strict=True) if own != part],
            )
            for part in range(_FOLDS)
        ]
        self._direction = _Direction.of(clean, stamped)
        return [
            look_of_boxes(each.boxes, parts[own](each), 1.0, _FLOOR).score
            for each, own in zip(clean, fold, strict=True)
        ]

    def look(self, seen: SeenImage) -> ImageLook:
        """As :meth:`ScreeningMethod.look`."""
        if self._direction is None:
            raise RuntimeError("fit it on clean images first")
        regions = self._regions(seen)
        return look_of_boxes(regions.boxes, self._direction(regions), 1.0, _FLOOR)

    def _regions(self, seen: SeenImage) -> Regions:
        return regions_of(seen, self.node.MIN_SCORE, self.node.DETECTED, self.node.UNCLAIMED)

    def _changed(self, seen: SeenImage, regions: Regions, trigger: Trigger) -> Tensor:
        """Features of the places on which the answer changes under the trigger, (C, F)."""
        places = regions.boxes
        if not len(places):
            return torch.zeros(0, _features(regions).shape[1])
        pixels = trigger.apply(
            seen.image[None],
            [tuple(seen.image.shape[1:])],
            [places.to(seen.image.device)],
            [0],
            self.model.input_format,
        )[0]
        _, (again,) = see(self.model, [{"image": pixels}])
        proposals = again.probe.proposal_boxes.cpu()
        overlap = pairwise_iou(Boxes(places), Boxes(proposals))
        best = overlap.max(dim=1)
        rows = best.indices[best.values >= _SAME]
        before = _answers(regions)[best.values >= _SAME]
        logits = again.probe.class_logits.cpu()[rows]
        changed = rows[logits.argmax(dim=1) != before.where(before >= 0, logits.shape[1] - 1)]
        return torch.cat([part.cpu()[changed] for part in again.features], dim=1)


def _answers(regions: Regions) -> Tensor:
    """What the detector takes each place for, int64 (B,); -1 for background."""
    return torch.where(regions.detected | (regions.margins > 0), regions.classes, -1)


def _features(regions: Regions) -> Tensor:
    return torch.cat([regions.pooled, regions.classified], dim=1)


@dataclass(frozen=True)
class _Direction:
    """Of each trigger, what tells places under it from clean ones."""

    weights: Tensor
    """(T, F), float64."""
    scales: list[Scale]

    @classmethod
    def of(cls, clean: Sequence[Regions], stamped: Sequence[Sequence[Tensor]]) -> _Direction:
        """From places of clean images, and features of the changed ones by trigger.

        Raises:
            FitError: no trigger changes anything.
        """
        before = torch.cat([_features(each) for each in clean]).double()
        weights, scales = [], []
        for of_trigger in zip(*stamped, strict=True):
            after = torch.cat(list(of_trigger)).double()
            if len(after) < _LEAST_CHANGED:
                continue
            spread = torch.cat([before - before.mean(dim=0), after - after.mean(dim=0)])
            weight = torch.linalg.solve(
                shrunk_covariance(spread, _SHRINKAGE), after.mean(dim=0) - before.mean(dim=0)
            )
            weights.append(weight)
            scales.append(Scale.of(before @ weight))
        if not weights:
            raise FitError("the found trigger changes nothing on the clean images")
        return cls(torch.stack(weights), scales)

    def __call__(self, regions: Regions) -> Tensor:
        """Of each place, float (B,): the largest over triggers."""
        values = _features(regions).double() @ self.weights.T
        scaled = [scale(column) for scale, column in zip(self.scales, values.T, strict=True)]
        return torch.stack(scaled, dim=1).amax(dim=1).float()
