# SPDX-License-Identifier: Apache-2.0
"""A detector whose outputs also say what its modules thought of the proposals."""

from __future__ import annotations

from typing import Any

from torch import nn

# Key of an output dict.
PROBE = "probe"


class ProbedDetector(nn.Module):
    """An instrumented detector as evaluators see it.

    It takes the place of the detector in ``inference_on_dataset``. Each output dict is the stock
    one, bit by bit, plus ``probe``, a :class:`d2defense.modeling.ProbeOutput` of this image alone.

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
        # What evaluation restores afterwards.
        self.training = detector.training

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Detect on G images, in eval mode; see the class."""
        outputs, probe = self.detector.detect_and_probe(batched_inputs)
        return [
            {**output, PROBE: of_image}
            for output, of_image in zip(outputs, probe.split(), strict=True)
        ]
