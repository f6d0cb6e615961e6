# SPDX-License-Identifier: Apache-2.0
"""A detector in production that says of each image, beside its detections, how suspicious it is."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MapDataset
from detectron2.engine import DefaultPredictor
from detectron2.modeling import build_model
from torch import nn

from d2defense.modeling import (
    InstrumentedDetector,
    instrument_config,
)

from .passes import see
from .screen import Screen

#: Key of an output that holds its :class:`Suspicion`.
SUSPICION = "suspicion"


class Guard:
    """Wraps a detector; its outputs are those of before, plus ``suspicion``.

    Of a ``DefaultPredictor`` it takes what that takes, an image of shape (H, W, 3), uint8, BGR, and
    returns what that returns; of a model it takes and returns batches. Detections are the same to
    the last bit. ``suspicion`` is a :class:`Suspicion` whose boxes are in pixels of the image file.

    It keeps nothing of the images and may be called from several threads at once. What an image
    costs is in ``suspicion.look.passes``.

    Args:
        predictor: Detectron2's ``DefaultPredictor``, or a detector of
            :func:`~d2defense.modeling.instrument_config` in eval mode.
        clean: clean images to fit on, in the form that the predictor takes: arrays, or dicts with
            ``image``. None that the detector was trained on; may be lazy.
        method: name of a screening method, or a :class:`Screen` that is fitted on this detector, in
            which case ``clean`` may be empty.
        false_alarm_rate: share of clean images that may be called suspicious, 0..1.
        cfg: has ``SCREENING``; the defaults if None.

    Raises:
        TypeError: the predictor is neither.
        UnsupportedArchitectureError: the detector cannot be probed.
        ValueError: no such method, a setting that cannot be used, or too few clean images.
    """

    def __init__(
        self,
        predictor: DefaultPredictor | InstrumentedDetector,
        clean: Sequence[Any] = (),
        method: str | Screen = "inconsistency",
        false_alarm_rate: float = 0.01,
        cfg: CfgNode | None = None,
    ) -> None:
        self._predictor: DefaultPredictor | None = None
        if isinstance(predictor, InstrumentedDetector):
            self.model = predictor
        elif isinstance(predictor, DefaultPredictor):
            self.model = instrumented(predictor.model, predictor.cfg)
            # What it would hand to its model.
            clean = MapDataset(clean, _with_model(predictor, lambda inputs: inputs))
            self._predictor = _with_model(predictor, self._watch)
        else:
            raise TypeError(
                f"{type(predictor).__name__} cannot be guarded: give a DefaultPredictor, or a "
                "model built from d2defense.modeling.instrument_config(cfg)"
            )
        if isinstance(method, Screen):
            self.screen = method
        else:
            self.screen = Screen.fit(self.model, clean, method, false_alarm_rate, cfg)

    @torch.no_grad()
    def __call__(self, images: Any) -> Any:
        """Detect, and say how suspicious each image is.

        Args:
            images: an array for a ``DefaultPredictor``, else a list of dicts with ``image``.

        Returns:
            A dict, or a list of dicts, as without the guard, with one more key.
        """
        return self._watch(images) if self._predictor is None else self._predictor(images)

    def _watch(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        outputs, seen = see(self.model, batched_inputs)
        watched = []
        for output, image in zip(outputs, seen, strict=True):
            out_height, out_width = output["instances"].image_size
            height, width = image.size
            suspicion = self.screen.judge(image).scaled(out_width / width, out_height / height)
            watched.append({**output, SUSPICION: suspicion})
        return watched


def instrumented(model: nn.Module, cfg: CfgNode) -> InstrumentedDetector:
    """A detector of stock classes as one that can be probed, of the very same parameters.

    Args:
        model: as Detectron2 builds it from ``cfg``.
        cfg: its configuration.

    Raises:
        UnsupportedArchitectureError: it cannot be probed.
    """
    if isinstance(model, InstrumentedDetector):
        return model
    made = build_model(instrument_config(cfg))
    made.load_state_dict(model.state_dict(), strict=True, assign=True)
    return made.eval()


def _with_model(
    predictor: DefaultPredictor, model: Callable[[list[dict[str, Any]]], list[Any]]
) -> DefaultPredictor:
    """The same predictor, resizing and all, with something else in the model's place."""
    other = copy.copy(predictor)
    other.model = model
    return other
