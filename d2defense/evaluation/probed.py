# SPDX-License-Identifier: Apache-2.0
"""A detector whose outputs also say what its modules thought of the proposals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from d2defense.modeling import BatchSize

# Key of an output dict.
PROBE = "probe"


class ProbedDetector(nn.Module):
    """An instrumented detector as evaluators see it.

    It takes the place of the detector in ``inference_on_dataset``. Each output dict is the stock
    one, bit by bit, plus ``probe``, a :class:`d2defense.modeling.ProbeOutput` of this image alone.
    A batch that the memory does not hold goes through it in parts.

    Args:
        detector: an :class:`d2defense.modeling.InstrumentedRCNN`.

    Raises:
        TypeError: the detector cannot be probed.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        if not hasattr(detector, "detect_and_probe"):
            raise TypeError(
                f"{type(detector).__name__} cannot be probed: build the model from "
                "d2defense.modeling.instrument_config(cfg)"
            )
        self.detector = detector
        self.batch_size = BatchSize(detector)
        # What evaluation restores afterwards.
        self.training = detector.training

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detect on G images, in eval mode; see the class."""

        def work(part: Sequence[int]) -> list[dict[str, Any]]:
            outputs, probe = self.detector.detect_and_probe([batched_inputs[i] for i in part])
            return [
                {**output, PROBE: of_image}
                for output, of_image in zip(outputs, probe.split(), strict=True)
            ]

        if not batched_inputs:
            return work([])
        heights, widths = zip(*(each["image"].shape[1:] for each in batched_inputs), strict=True)
        # A batch that fits stays whole, so that its outputs are the stock ones to the last bit.
        self.batch_size.measure((heights[0], widths[0]), lambda: work([0]))
        shape = (max(heights), max(widths))
        parts = self.batch_size.run(range(len(batched_inputs)), shape, work)
        return [output for part in parts for output in part]
