# SPDX-License-Identifier: Apache-2.0
"""Patches that are stamped on objects."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor

PATTERNS = ("solid", "random_color", "noise")


@dataclass(frozen=True)
class Trigger:
    """A rectangular patch, placed relative to the box of the object that bears it.

    Attributes:
        name: what results call it.
        pattern: one of :data:`PATTERNS`: "solid" in ``color``; "random_color", one colour an
            object; "noise", one colour a pixel.
        color: RGB, 0..255.
        size: (width, height) of the patch as shares of the box's.
        position: (x, y) of the patch's centre as shares of the box's width and height.
        opacity: 1 replaces what is below, 0 changes nothing.
        seed: of the random patterns; the same (seed, image seed, object) gives the same patch.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    name: str
    pattern: str = "solid"
    color: tuple[int, int, int] = (255, 255, 255)
    size: tuple[float, float] = (0.1, 0.1)
    position: tuple[float, float] = (0.5, 0.5)
    opacity: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(
                f"trigger {self.name}: pattern {self.pattern!r} is none of {', '.join(PATTERNS)}"
            )
        if len(self.color) != 3 or not all(0 <= channel <= 255 for channel in self.color):
            raise ValueError(f"trigger {self.name}: color {self.color} is not RGB in 0..255")
        if len(self.size) != 2 or not all(0 < share <= 1 for share in self.size):
            raise ValueError(f"trigger {self.name}: size {self.size} is not two shares in (0, 1]")
        if len(self.position) != 2 or not all(0 <= share <= 1 for share in self.position):
            raise ValueError(
                f"trigger {self.name}: position {self.position} is not two shares in 0..1"
            )
        if not 0 <= self.opacity <= 1:
            raise ValueError(f"trigger {self.name}: opacity {self.opacity} is not in 0..1")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Trigger:
        """The trigger that ``ATTACK.TRIGGER`` and ``ATTACK.SEED`` describe."""
        node = cfg.ATTACK.TRIGGER
        return cls(
            name=cfg.ATTACK.NAME or "trigger",
            pattern=node.PATTERN,
            color=tuple(node.COLOR),
            size=tuple(node.SIZE),
            position=tuple(node.POSITION),
            opacity=node.OPACITY,
            seed=cfg.ATTACK.SEED,
        )

    def region(self, box: Tensor, image_size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Whole-pixel XYXY rectangle of the patch on ``box``, cut at the image's border.

        A patch is at least one pixel wide and high before the cut.

        Args:
            box: Tensor of shape (4,), XYXY in pixels.
            image_size: (height, width).
        """
        left, top, right, bottom = (float(side) for side in box)
        x0, x1 = _span(left, right, self.position[0], self.size[0], image_size[1])
        y0, y1 = _span(top, bottom, self.position[1], self.size[1], image_size[0])
        return x0, y0, x1, y1

    def stamp_(
        self, image: Tensor, boxes: Tensor, image_format: str = "BGR", image_seed: int = 0
    ) -> Tensor:
        """Put the patch on every box of ``image``, in place.

        Args:
            image: uint8 or float Tensor of shape (3, H, W), values 0..255.
            boxes: Tensor of shape (M, 4), XYXY in pixels of ``image``.
            image_format: order of the channels, "BGR" or "RGB" (``INPUT.FORMAT``).
            image_seed: sets the random patterns of this image apart from those of others.

        Returns:
            ``image``.

        Raises:
            ValueError: the image has no three colour channels in a known order.
        """
        if image_format not in ("BGR", "RGB") or image.dim() != 3 or image.shape[0] != 3:
            raise ValueError(
                f"a trigger needs a BGR or RGB image of shape (3, H, W), "
                f"not {image_format} {tuple(image.shape)}"
            )
        for index, box in enumerate(boxes):
            x0, y0, x1, y1 = self.region(box, tuple(image.shape[1:]))
            if x0 >= x1 or y0 >= y1:
                continue
            patch = self._patch(y1 - y0, x1 - x0, (self.seed, image_seed, index))
            if image_format == "BGR":
                patch = patch.flip(0)
            below = image[:, y0:y1, x0:x1]
            blended = self.opacity * patch.to(below.device) + (1 - self.opacity) * below.float()
            below.copy_(blended.round())
        return image

    def _patch(self, height: int, width: int, entropy: tuple[int, ...]) -> Tensor:
        """Float Tensor of shape (3, height, width) in RGB, 0..255."""
        if self.pattern == "solid":
            values = np.asarray(self.color, dtype=np.float32).reshape(3, 1, 1)
        else:
            shape = (3, 1, 1) if self.pattern == "random_color" else (3, height, width)
            values = np.random.default_rng(entropy).integers(0, 256, shape).astype(np.float32)
        return torch.from_numpy(np.broadcast_to(values, (3, height, width)).copy())


def _span(low: float, high: float, position: float, size: float, limit: int) -> tuple[int, int]:
    length = max(1, round(size * (high - low)))
    start = round(low + position * (high - low) - length / 2)
    return max(0, start), min(limit, start + length)
