# SPDX-License-Identifier: Apache-2.0
"""Sinusoids: SIG (Barni et al., arXiv 1902.11237), on detectors over each place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

from d2defense.registry import TRIGGER_REGISTRY

from ..checks import is_number
from ..regions import Region, RegionTrigger


@TRIGGER_REGISTRY.register("sinusoid")
@dataclass(frozen=True)
class Sinusoid(RegionTrigger):
    """A faint wave over the place, the same in all three channels (SIG).

    ``amplitude * sin(2 pi frequency x / width)`` is added, with x = 0 in the place's first column.
    At another angle x and width are measured along the direction in which the wave runs.

    Attributes:
        name: what results call it.
        seed: not used; the wave is the same at every place of one size.
        amplitude: the largest change of a value, in shares of 255.
        frequency: waves across the place.
        angle: of the direction in which the wave runs, in degrees: 0 to the right, 90 down.
    """

    amplitude: float = 20 / 255
    frequency: float = 6.0
    angle: float = 0.0

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """See the class."""
        # Largest change of a value, 0 to 1, which stands for 255; 20 / 255 and six waves are what
        # BackdoorBench has.
        node.AMPLITUDE = 20 / 255
        # Waves across the place, above 0, at most 512; not only whole ones.
        node.FREQUENCY = 6.0
        # Direction in which the wave runs, in degrees, -360 to 360: 0 to the right, 90 down.
        node.ANGLE = 0.0

    def __post_init__(self) -> None:
        self._require(is_number(self.amplitude, 0, 1), f"amplitude {self.amplitude} is not in 0..1")
        self._require(
            is_number(self.frequency, 0, 512) and self.frequency > 0,
            f"frequency {self.frequency} is not in (0, 512]",
        )
        self._require(is_number(self.angle, -360, 360), f"angle {self.angle} is not in -360..360")

    def tensors(self) -> dict[str, Tensor]:
        """One number a channel, RGB, float32 of shape (3,).

        ``amplitude``, cut to plus or minus the trigger's on use, and ``phase`` in radians.
        """
        return {"amplitude": torch.full((3,), self.amplitude), "phase": torch.zeros(3)}

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Sinusoid:
        """A faint wave in any direction."""
        amplitude, frequency = float(rng.uniform(0.03, 0.12)), float(rng.uniform(2, 12))
        return cls("drawn", 0, amplitude, frequency, float(rng.uniform(-180, 180)))

    def transform(self, region: Region, tensors: Mapping[str, Tensor]) -> Tensor:
        """The pixels with the wave added."""
        (x, y), (width, height) = region.grid(), region.size
        right, down = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        # From one corner of the place to the opposite one, along the wave.
        extent = abs(right) * width + abs(down) * height
        turns = (right * x + down * y) * (self.frequency / extent)
        phase = 2 * math.pi * turns + tensors["phase"][:, None, None]
        amplitude = tensors["amplitude"].clamp(-self.amplitude, self.amplitude)
        return region.pixels + amplitude[:, None, None] * torch.sin(phase)
