# SPDX-License-Identifier: Apache-2.0
"""Ours: what the two modules disagree on, and what does not look like its class, then a test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import SCREENING_REGISTRY

from ..normality import Normality, Scale
from ..null import FitError
from ..occlusion import SecondLook, look_again
from ..passes import SeenImage
from ..regions import Regions, regions_of
from .base import ImageLook, ScreeningMethod

# Parts into which the clean images are divided, so that each is scored by what the others taught.
_FOLDS = 10
# With fewer clean images nothing can be learnt from the others.
_LEAST_IMAGES = 20
# The score of an image on which there is nothing to look at.
_FLOOR = -10.0
# Of the clean images, those whose mean is the unit of a kind of place.
_TOP = 0.03
_KINDS = (True, False)  # detected, unclaimed


@SCREENING_REGISTRY.register("inconsistency")
class Inconsistency(ScreeningMethod):
    """One pass: RPN against box head, features against their class; doubtful places once more.

    An image gives *detections* and *unclaimed* proposals, which touch no detection. A detection is
    odd if its features are far from those of clean detections of its class, by the Mahalanobis
    distance of Lee et al. (arXiv 1807.03888, section 2.1), taken of the pooled features and of what
    the classifier is given: ghosts and misclassified objects bear their class's name and not its
    features. An unclaimed proposal is odd if the RPN is sure of it while the box head is not
    (arXiv 2409.16057, section 3.4) or nearly so: objects that vanished.

    Of the images whose oddest place is among the oddest ``DOUBTFUL_SHARE`` of the clean ones, the
    places that are odd are cut out and judged again with their middles hidden: a detection that
    turns into something else, or an object that comes back, had its cause there. A place's score is
    its oddity plus how sure the new answer is; detections and unclaimed proposals are brought to
    one scale by what clean images reach.
    """

    floor = _FLOOR

    def __init__(self, model: torch.nn.Module, node: CfgNode) -> None:
        super().__init__(model, node)
        self._shares = tuple(node.HIDDEN)
        if not self._shares or not all(0 < share < 1 for share in self._shares):
            raise ValueError(
                "SCREENING.INCONSISTENCY.HIDDEN: shares above 0 and below 1, at least one"
            )
        if not 0 <= node.DOUBTFUL_SHARE <= 1:
            raise ValueError("SCREENING.INCONSISTENCY.DOUBTFUL_SHARE is not between 0 and 1")
        self._learnt: _Learnt | None = None

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """The method's keys."""
        # A detection counts from this score on.
        node.MIN_SCORE = 0.5
        # Places of one image: at most so many detections.
        node.DETECTED = 20
        # And so many proposals that touch none.
        node.UNCLAIMED = 8
        # Share of the clean images that get a second look; 0: none does.
        node.DOUBTFUL_SHARE = 0.3
        # In a second look, at most so many places of an image.
        node.PLACES = 2
        # Shares of a place's sides that are hidden in its middle, one after another.
        node.HIDDEN = [0.28, 0.4]
        # What the second answer counts beside the oddity, which counts 1 at most.
        node.REACTION_WEIGHT = 3.0

    @torch.no_grad()
    def fit(self, images: Sequence[SeenImage]) -> list[float]:
        """As :meth:`ScreeningMethod.fit`; each image is scored by what other images taught."""
        count = len(images)
        if count < _LEAST_IMAGES:
            raise FitError(f"{count} clean images are too few: it takes {_LEAST_IMAGES}")
        regions = [self._regions(images[index]) for index in range(count)]
        fold = np.arange(count) % _FOLDS
        taught = [
            _Oddity.of([regions[i] for i in range(count) if fold[i] != part])
            for part in range(_FOLDS)
        ]
        odd = [taught[fold[i]](each) for i, each in enumerate(regions)]
        chosen = [self._oddest(each) for each in odd]
        highest = [float(each.max()) if len(each) else _FLOOR for each in odd]
        gate = float(np.quantile(highest, 1 - self.node.DOUBTFUL_SHARE))
        weight = self.node.REACTION_WEIGHT if self._looks_twice else 0.0
        plain = _Learnt(_Oddity.of(regions), gate, _sureness(regions), weight)
        reactions = {
            index: self._reactions(images[index], regions[index].take(chosen[index]))[0]
            for index, each in enumerate(odd)
            if self._looks_twice and plain.is_doubtful(each)
        }
        plain = replace(plain, usual=plain.usual_changes(list(reactions.values())))
        totals = [
            plain.with_reaction(each, chosen[index], reactions[index])
            if index in reactions
            else plain.without_reaction(each)
            for index, each in enumerate(odd)
        ]
        # Of a kind that never comes near to a change, one that does is odd enough.
        least = max(1.0, plain.weight)
        units = {
            kind: _unit(
                [each[of.detected == kind] for each, of in zip(totals, regions, strict=True)], least
            )
            for kind in _KINDS
        }
        self._learnt = replace(plain, units=units)
        return [
            self._learnt.score(each, of.detected)[0]
            for each, of in zip(totals, regions, strict=True)
        ]

    @torch.no_grad()
    def look(self, seen: SeenImage) -> ImageLook:
        """As :meth:`ScreeningMethod.look`."""
        learnt = self._learnt
        if learnt is None:
            raise RuntimeError("fit it on clean images first")
        regions = self._regions(seen)
        odd, passes = learnt.oddity(regions), 1.0
        if self._looks_twice and learnt.is_doubtful(odd):
            rows = self._oddest(odd)
            reaction, cost = self._reactions(seen, regions.take(rows))
            totals, passes = learnt.with_reaction(odd, rows, reaction), passes + cost
        else:
            totals = learnt.without_reaction(odd)
        score, of_boxes = learnt.score(totals, regions.detected)
        return ImageLook(score, regions.boxes, of_boxes, passes)

    @property
    def _looks_twice(self) -> bool:
        return min(self.node.DOUBTFUL_SHARE, self.node.PLACES, self.node.REACTION_WEIGHT) > 0

    def _regions(self, seen: SeenImage) -> Regions:
        node = self.node
        return regions_of(seen, node.MIN_SCORE, node.DETECTED, node.UNCLAIMED)

    def _oddest(self, odd: Tensor) -> Tensor:
        return odd.topk(min(self.node.PLACES, len(odd))).indices

    def _reactions(self, seen: SeenImage, regions: Regions) -> tuple[Tensor, float]:
        """How far each place changes, float (B, V), and what it took in passes."""
        if not len(regions.boxes):
            return torch.zeros(0, len(self._shares)), 0.0
        second: SecondLook = look_again(self.model, seen.image, regions.boxes, self._shares)
        return _changes(second.logits, regions), second.passes


@dataclass(frozen=True)
class _Oddity:
    """How odd places are, in one pass: 0 for the middle of clean images, 1 for their 95 %."""

    pooled: Normality
    classified: Normality
    parts: tuple[Scale, Scale, Scale, Scale]
    """Of both distances of detections, of objectness and margin of unclaimed proposals."""
    kinds: dict[bool, Scale]
    """Of the oddest place of each kind on an image."""

    @classmethod
    def of(cls, images: Sequence[Regions]) -> _Oddity:
        """From clean images."""
        every = Regions(*(torch.cat(field) for field in zip(*images, strict=True)))
        detected, rest = every.take(every.detected), every.take(~every.detected)
        pooled = Normality.of(detected.pooled, detected.classes)
        classified = Normality.of(detected.classified, detected.classes)
        parts = (
            Scale.of(pooled(detected.pooled, detected.classes)),
            Scale.of(classified(detected.classified, detected.classes)),
            Scale.of(rest.objectness),
            Scale.of(rest.margins),
        )
        plain = cls(pooled, classified, parts, dict.fromkeys(_KINDS, Scale(0.0, 1.0)))
        highest: dict[bool, list[Tensor]] = {kind: [] for kind in _KINDS}
        for each in images:
            odd = plain(each)
            for kind in _KINDS:
                if (each.detected == kind).any():
                    highest[kind].append(odd[each.detected == kind].max())
        kinds = {
            kind: Scale.of(torch.stack(values) if values else torch.zeros(0))
            for kind, values in highest.items()
        }
        return cls(pooled, classified, parts, kinds)

    def __call__(self, regions: Regions) -> Tensor:
        """Of each place, float (B,)."""
        pooled, classified, objectness, margin = self.parts
        of_detected = torch.maximum(
            pooled(self.pooled(regions.pooled, regions.classes)),
            classified(self.classified(regions.classified, regions.classes)),
        )
        of_rest = objectness(regions.objectness) + margin(regions.margins)
        return torch.where(
            regions.detected, self.kinds[True](of_detected), self.kinds[False](of_rest)
        )


@dataclass(frozen=True)
class _Learnt:
    """What is normal."""

    oddity: _Oddity
    gate: float
    """The oddity of an image from which on it gets a second look."""
    sureness: float
    """The margin of a clean detection over background, in logits."""
    weight: float
    """What a reaction counts."""
    usual: Tensor = field(default_factory=lambda: torch.ones(1))
    """(V,): how far the most changeable clean places change under each occlusion, at least 1."""
    units: dict[bool, float] = field(default_factory=dict)
    """What the most suspicious clean images reach by each kind of place."""

    def is_doubtful(self, odd: Tensor) -> bool:
        """Whether an image with places of such oddity gets a second look."""
        return len(odd) > 0 and float(odd.max()) > self.gate

    def with_reaction(self, odd: Tensor, rows: Tensor, reaction: Tensor) -> Tensor:
        """The oddity of all places, 1 at most, plus the reaction of some.

        A change is 0 where a place is as surely what it was as a clean detection is, 1 where it is
        no longer one more than the other, and 2 where it is as surely something else. What counts
        is the largest over occlusions, each against what it does to clean places: a large one hides
        what makes the class, a small one only a part of a large trigger.
        """
        total = odd.clamp(max=1.0)
        if len(rows):
            change = (self._changes(reaction) / self.usual).amax(dim=1)
            total[rows] += self.weight * change.to(total.dtype)
        return total

    def usual_changes(self, reactions: Sequence[Tensor]) -> Tensor:
        """See :attr:`usual`, from the reactions of clean images."""
        known = [self._changes(each) for each in reactions if len(each)]
        if not known:
            return torch.ones(1)
        changes = torch.cat(known)
        highest = changes.topk(max(1, round(_TOP * len(changes))), dim=0).values
        return highest.mean(dim=0).clamp(min=1)

    def _changes(self, reaction: Tensor) -> Tensor:
        return (reaction / self.sureness + 1).clamp(min=0)

    def without_reaction(self, odd: Tensor) -> Tensor:
        """Of an image that gets no second look; where none does, oddity alone decides."""
        return odd if self.weight == 0 else odd.clamp(max=1.0)

    def score(self, totals: Tensor, detected: Tensor) -> tuple[float, Tensor]:
        """Of an image and of its places, on the scale of both kinds."""
        if not len(totals):
            return _FLOOR, totals
        units = torch.where(detected, self.units[True], self.units[False])
        of_places = (totals / units).clamp(min=_FLOOR)
        return float(of_places.max()), of_places


def _sureness(regions: Sequence[Regions]) -> float:
    margins = torch.cat([each.margins[each.detected] for each in regions])
    return max(1e-6, float(margins.median())) if len(margins) else 1.0


def _unit(totals: Sequence[Tensor], least: float) -> float:
    """The mean of the highest of the images' largest, at least ``least``."""
    largest = torch.stack([each.max() for each in totals if len(each)] or [torch.zeros(())])
    highest = largest.topk(max(1, round(_TOP * len(largest)))).values.mean()
    return max(float(highest), least)


def _changes(logits: Tensor, regions: Regions) -> Tensor:
    """How far places have turned into something else, from (B, V, K + 1) to (B, V).

    Of a detection, the margin of the likeliest other answer over its class, background among the
    answers; of an unclaimed proposal, that of the likeliest class over background.
    """
    risen = logits[..., :-1].amax(dim=2) - logits[..., -1]
    own = regions.classes[:, None, None].expand(-1, logits.shape[1], 1)
    others = logits.scatter(2, own, -torch.inf).amax(dim=2)
    lost = others - logits.gather(2, own)[..., 0]
    return torch.where(regions.detected[:, None], lost, risen)
