# SPDX-License-Identifier: Apache-2.0
"""Scores of any detector on one scale.

A detector ranks its detections as well with all class logits divided by 30, or with something added
to background, but statistics of its probabilities would no longer show what a trigger does. So
logits are measured in units of what they are on clean images, and detections count from the score
on at which the detector does best there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor, nn

from d2defense.attacks import Detections, Objects
from d2defense.modeling import ProbeOutput, RegionOutput
from d2defense.statistics import IOU_THRESHOLD, SCORE_THRESHOLD

from .images import CleanImage

# Half the distance between objects and background on the common scale: gradients still pass.
_HALF_DISTANCE = 6.0
# What the scale is stretched by where probabilities are only read: about as sure as stock training
# makes a detector of its classes, too.
_SHARPER = 2.0
_BLIND = "it does not tell objects from background on the clean images"
# IoU below which a proposal is taken to lie beside an object.
_APART = 0.1
# Detections below this are no detections at any operating point.
LEAST_SCORE = 1e-3
# Images that say enough of a detector's scale.
_ENOUGH_IMAGES = 50
# Scores that are tried as the operating point, at most.
_CANDIDATES = 200
# Of the largest F1, what a lower score must reach.
_HARDLY_WORSE = 0.98


@dataclass(frozen=True)
class LogitScale:
    """What a detector's logits are on clean images, for objects and for background.

    Attributes:
        foreground: (middle, unit) of the margin of the likeliest class over background.
        objectness: (middle, unit) of the objectness logit; None where the detector has none.
    """

    foreground: tuple[float, float]
    objectness: tuple[float, float] | None

    @classmethod
    def of(cls, model: nn.Module, images: Sequence[CleanImage]) -> LogitScale:
        """From what a detector says of its proposals on clean images.

        The middle lies between the median of true objects and that of what comes nearest to an
        object on each image without touching one.

        Args:
            model: instrumented, in eval mode.
            images: clean, with objects.

        Raises:
            ValueError: it does not tell objects from background.
        """
        outputs = (model.probe([{"image": image.image}]) for image in images)
        high, low = _levels(images, outputs)
        foreground, _, *rest = (_middle_and_unit(*pair) for pair in zip(high, low, strict=True))
        return cls(foreground, rest[0] if rest else None)

    def __call__(self, output: RegionOutput) -> RegionOutput:
        """The same output on the common scale: objects about 6, background below 0."""
        objectness = output.objectness_logits
        if objectness is not None and self.objectness is not None:
            middle, unit = self.objectness
            objectness = (objectness - middle) / unit
        class_logits = scaled_logits(output.class_logits, self.foreground)
        return replace(output, objectness_logits=objectness, class_logits=class_logits)


def scaled_logits(class_logits: Tensor, scale: tuple[float, float]) -> Tensor:
    """Class logits on the common scale, (M, K + 1).

    Args:
        class_logits: Tensor of shape (M, K + 1), background last.
        scale: middle and unit of their foreground margin.
    """
    middle, unit = scale
    logits = class_logits / unit
    shift = torch.zeros_like(logits[:1])
    shift[:, -1] = middle / unit
    return logits + shift


def foreground_margin(class_logits: Tensor) -> Tensor:
    """Of the likeliest class over background, from (M, K + 1) to (M,).

    Not the log odds of all classes together, which a division of the logits does not just divide.
    """
    return class_logits[:, :-1].amax(dim=1) - class_logits[:, -1]


def _levels(images: Iterable[CleanImage], outputs: Iterable[ProbeOutput]) -> tuple[Tensor, Tensor]:
    """Foreground margin, log odds of the score and objectness logit: (3,), objects and background.

    (2,) where the detector has no objectness. The median of true objects, and of what comes nearest
    to one on each image without touching one.
    """
    of_objects, of_rest = [], []
    for image, output in zip(images, outputs, strict=True):
        logits = output.deployed_logits
        told = [foreground_margin(logits), _log_odds(logits), output.objectness_logits]
        margins = torch.stack([each for each in told if each is not None]).cpu()
        if not margins.shape[1]:
            continue
        overlap = pairwise_iou(Boxes(image.boxes), Boxes(output.proposal_boxes.cpu()))
        matched = overlap >= IOU_THRESHOLD
        of_objects += [margins[:, row].amax(1) for row in matched if row.any()]
        apart = (overlap < _APART).all(0)
        if apart.any():
            of_rest.append(margins[:, apart].amax(1))
    if not of_objects or not of_rest:
        raise ValueError(_BLIND)
    high, low = (torch.stack(each).median(0).values for each in (of_objects, of_rest))
    return high, low


def _log_odds(class_logits: Tensor) -> Tensor:
    """Of the likeliest class against all else, from (M, K + 1) to (M,)."""
    best = class_logits[:, :-1].argmax(dim=1, keepdim=True)
    others = class_logits.scatter(1, best, -torch.inf).logsumexp(dim=1)
    return class_logits.gather(1, best)[:, 0] - others


def _middle_and_unit(high: Tensor, low: Tensor) -> tuple[float, float]:
    if not high > low:
        raise ValueError(_BLIND)
    return float(high + low) / 2, float(high - low) / 2 / _HALF_DISTANCE


@dataclass(frozen=True)
class DeployedScale:
    """By what measure a detector's scores and detections count, whatever their scale.

    Attributes:
        foreground: middle and unit of the margin of the likeliest class over background.
        point: the score from which on its detections count, 0..1: that of the middle.
    """

    foreground: tuple[float, float]
    point: float

    @classmethod
    def unknown(cls) -> DeployedScale:
        """Scores as they are."""
        return cls((0.0, 1.0), SCORE_THRESHOLD)

    @classmethod
    def of(cls, model: nn.Module, images: Sequence[CleanImage]) -> DeployedScale:
        """From what a detector says of clean images, of the first 50.

        Args:
            model: instrumented, in eval mode.
            images: clean, with objects.

        Raises:
            ValueError: it does not tell objects from background.
        """
        images = [images[index] for index in range(min(len(images), _ENOUGH_IMAGES))]
        outputs = (model.probe([{"image": each.image}]) for each in images)
        high, low = _levels(images, outputs)
        middle, unit = _middle_and_unit(high[0], low[0])
        odds = (high[1] + low[1]) / 2
        return cls((middle, unit / _SHARPER), float(odds.sigmoid()))


def as_detections(instances: Instances) -> Detections:
    """A probe's detections of one image, on the CPU."""
    return Detections(
        instances.pred_boxes.tensor.float().cpu(),
        instances.pred_classes.cpu(),
        # In half precision they come so.
        instances.scores.float().cpu(),
    )


def operating_point(objects: Sequence[Objects], detections: Sequence[Detections]) -> float:
    """The score at which a detector does best on clean images: the largest F1.

    Args:
        objects: of each image; classes below 0 fit any.
        detections: of the same images, of whatever score.

    Returns:
        A score, 0..1; 0.5 where nothing is detected.
    """
    return _best(*_f1_by_level(objects, detections))


def lenient_point(objects: Sequence[Objects], detections: Sequence[Detections]) -> float:
    """A lower score, at which a detector does hardly worse on clean images.

    Whoever uses it may ask for as little, so what appears with such a score counts: halfway, in
    logits, from :func:`operating_point` to the lowest score whose F1 is 0.98 of the largest.

    Args:
        objects: of each image; classes below 0 fit any.
        detections: of the same images, of whatever score.

    Returns:
        A score, 0..1; 0.5 where nothing is detected.
    """
    levels, values = _f1_by_level(objects, detections)
    lowest = levels[values >= _HARDLY_WORSE * values.max()][0]
    pair = torch.tensor([lowest, _best(levels, values)], dtype=torch.float64)
    return float(torch.logit(pair, eps=1e-6).mean().sigmoid())


def _best(levels: np.ndarray, values: np.ndarray) -> float:
    """The level of the largest value."""
    # Where many levels do as well, the middle one: far from what would change it.
    good = levels[values >= values.max() - 1e-9]
    return float(good[len(good) // 2])


def _f1_by_level(
    objects: Sequence[Objects], detections: Sequence[Detections]
) -> tuple[np.ndarray, np.ndarray]:
    """Scores by rising order, and F1 of the detections from each on."""
    scores = torch.cat([each.scores for each in detections])
    if not len(scores):
        return np.array([SCORE_THRESHOLD]), np.zeros(1)
    best = torch.cat([_best_scores(*pair) for pair in zip(objects, detections, strict=True)])
    right = torch.cat([_is_right(*pair) for pair in zip(objects, detections, strict=True)])
    levels = np.unique(np.quantile(scores.numpy(), np.linspace(0, 1, _CANDIDATES)))

    def f1(level: float) -> float:
        taken = scores >= level
        precision = float((right & taken).sum()) / max(1, int(taken.sum()))
        recall = float((best >= level).double().mean())
        return 2 * precision * recall / max(precision + recall, 1e-12)

    return levels, np.array([f1(level) for level in levels])


def on_common_scale(detections: Detections, point: float) -> Detections:
    """The same detections with scores such that those from the operating point on count as found.

    Order is kept: 0 to 0, ``point`` to 0.5, 1 to 1.
    """
    scores, half = detections.scores, SCORE_THRESHOLD
    above = half + (1 - half) * (scores - point) / max(1 - point, 1e-9)
    mapped = torch.where(scores >= point, above, half * scores / max(point, 1e-9))
    return detections._replace(scores=mapped)


def _matches(objects: Objects, detections: Detections) -> Tensor:
    overlap = pairwise_iou(Boxes(objects.boxes), Boxes(detections.boxes)) >= IOU_THRESHOLD
    same = objects.classes[:, None] == detections.classes[None]
    return overlap & (same | (objects.classes < 0)[:, None])


def _best_scores(objects: Objects, detections: Detections) -> Tensor:
    """Of each object, the score of the best detection that finds it; -1 for none."""
    found = torch.where(_matches(objects, detections), detections.scores[None], -1.0)
    return found.amax(dim=1) if found.shape[1] else torch.full((len(found),), -1.0)


def _is_right(objects: Objects, detections: Detections) -> Tensor:
    return _matches(objects, detections).any(dim=0)
