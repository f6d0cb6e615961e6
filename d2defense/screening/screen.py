# SPDX-License-Identifier: Apache-2.0
"""A method with its null: the decision whether an image carries a trigger."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode

from d2defense.checkpoint import nonfinite_tensors
from d2defense.config import get_d2defense_cfg
from d2defense.modeling import InstrumentedDetector, UnsupportedArchitectureError
from d2defense.registry import SCREENING_REGISTRY

from .methods.base import ImageLook, ScreeningMethod
from .null import FitError, ScoreNull, allowed_above
from .passes import SeenImage, see

# A detector that can be judged detects something on this share of its clean images.
_LEAST_DETECTED = 0.1
# From this score on: Detectron2's own default. The config's may be 0, where anything is detected.
_DETECTED_FROM = 0.05
# Tensors that a message names.
_NAMED = 3


class CleanPasses(Sequence[SeenImage]):
    """Clean images, each sent through the detector when it is asked for.

    Args:
        model: in eval mode.
        inputs: dicts with ``image`` as stock inference takes them; may be lazy.

    Attributes:
        detected: of each image that was asked for, by its index: whether anything is detected.
    """

    def __init__(self, model: InstrumentedDetector, inputs: Sequence[Mapping[str, Any]]) -> None:
        self._model = model
        self._inputs = inputs
        self.detected: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> SeenImage:
        """Pass one image through the detector."""
        (seen,) = see(self._model, [dict(self._inputs[index])])[1]
        self.detected[index % len(self)] = bool((seen.scores >= _DETECTED_FROM).any())
        return seen


@dataclass(frozen=True)
class Suspicion:
    """What is said of one image.

    Attributes:
        look: score of the image and of its places.
        p_value: share of clean images that would score as much, 1 / (n + 1) to 1.
        threshold: score above which an image, or a place, is suspicious.
    """

    look: ImageLook
    p_value: float
    threshold: float

    @property
    def is_suspicious(self) -> bool:
        """Whether the image is said to carry a trigger; so is one whose score is NaN."""
        return not self.look.score <= self.threshold

    @property
    def suspicious_boxes(self) -> torch.Tensor:
        """bool (B,): which of the places make it so."""
        return ~(self.look.scores <= self.threshold)

    def scaled(self, x: float, y: float) -> Suspicion:
        """The same with its boxes in pixels of another image, so many times as wide and high."""
        boxes = self.look.boxes * self.look.boxes.new_tensor([x, y, x, y])
        return replace(self, look=self.look._replace(boxes=boxes))


class Screen:
    """A screening method for one detector, fitted on clean images.

    Args:
        method: fitted.
        null: scores of clean images.
        false_alarm_rate: share of clean images that may be called suspicious.

    Raises:
        FitError: too few clean images for this rate.
    """

    def __init__(self, method: ScreeningMethod, null: ScoreNull, false_alarm_rate: float) -> None:
        self.method = method
        self.null = null
        self.threshold = null.threshold(false_alarm_rate)

    @classmethod
    def fit(
        cls,
        model: InstrumentedDetector,
        clean: Sequence[Mapping[str, Any]],
        method: str = "inconsistency",
        false_alarm_rate: float = 0.01,
        cfg: CfgNode | None = None,
    ) -> Screen:
        """Fit a method on clean images of the defender, without labels.

        Args:
            model: in eval mode.
            clean: dicts with ``image`` as stock inference takes them, drawn like those to come, and
                none that the detector was trained on; may be lazy.
            method: name in ``SCREENING_REGISTRY``.
            false_alarm_rate: share of clean images that may be called suspicious, 0..1.
            cfg: has ``SCREENING``; the defaults if None.

        Raises:
            ValueError: no such method, a setting that cannot be used, or (:class:`FitError`) too
                few images, or a detector by which nothing can be judged: its weights are not
                finite, it detects next to nothing on the images, or the method finds nothing to
                look at on any of them.
        """
        made = build_method(model, method, cfg)
        # Found out before the images are gone through.
        allowed_above(len(clean), false_alarm_rate)
        _require_finite(model)
        passes = CleanPasses(model, clean)
        null = ScoreNull.of(made.fit(passes))
        _require_sight(passes, method, made, null)
        return cls(made, null, false_alarm_rate)

    def judge(self, seen: SeenImage) -> Suspicion:
        """What is said of one image; may be called from several threads at once."""
        look = self.method.look(seen)
        return Suspicion(look, self.null.p_value(look.score), self.threshold)


def build_method(
    model: InstrumentedDetector, name: str, cfg: CfgNode | None = None
) -> ScreeningMethod:
    """The screening method of a name, not fitted yet.

    Raises:
        UnsupportedArchitectureError: d2defense does not know the detector.
        ValueError: no such method, or a setting that cannot be used.
    """
    if not isinstance(model, InstrumentedDetector):
        raise UnsupportedArchitectureError(
            f"{type(model).__name__} cannot be screened with: it is no instrumented detector"
        )
    node = (cfg or get_d2defense_cfg()).SCREENING
    return SCREENING_REGISTRY.get(name)(model, node.get(name.upper(), CfgNode()))


def _require_finite(model: InstrumentedDetector) -> None:
    """Raise a FitError if a weight or buffer holds NaN or infinity.

    It spreads to what is made of it, and of what is NaN nothing is detected: no image would have a
    place to look at.
    """
    # Not the state dict: it lacks buffers such as the mean of the pixels.
    broken = nonfinite_tensors(dict([*model.named_parameters(), *model.named_buffers()]))
    if broken:
        more = f", and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
        raise FitError(
            "nothing can be judged by this detector: it has weights that are NaN or infinite "
            f"({', '.join(broken[:_NAMED])}{more})"
        )


def _require_sight(
    passes: CleanPasses, name: str, method: ScreeningMethod, null: ScoreNull
) -> None:
    """Raise a FitError if the detector sees next to nothing: then no image looks suspicious."""
    asked, detected = len(passes.detected), sum(passes.detected.values())
    if detected < _LEAST_DETECTED * asked:
        raise FitError(
            "nothing can be judged by this detector: it detects something on "
            f"{detected} of {asked} clean images; it takes a share of {_LEAST_DETECTED:g}"
        )
    # A part of somebody else's need not be a ScreeningMethod to be one.
    if max(null.scores) <= getattr(method, "floor", -math.inf):
        raise FitError(
            f"nothing can be judged by this detector: {name} finds nothing to look at on any of "
            "the clean images"
        )
