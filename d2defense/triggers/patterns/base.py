# SPDX-License-Identifier: Apache-2.0
"""What a pattern is: the colours of a patch's pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from torch import Tensor

from ..base import schema_of
from ..patch_spec import PatchSpec
from ..randomness import hash32

# Sets the random numbers of patterns apart from those of places.
_SALT = 0x636F6C72


@dataclass(frozen=True)
class PatchPixels:
    """The pixels of a set of M patches.

    Attributes:
        owner: int64 Tensor of shape (P,): the patch that each pixel belongs to.
        x: int64 Tensor of shape (P,): columns inside the patch, from 0 on.
        y: int64 Tensor of shape (P,): rows, likewise.
        lengths: int64 Tensor of shape (M, 2): width and height of each patch.
        keys: int64 Tensor of shape (M, K): seeds that are each object's own.
    """

    owner: Tensor
    x: Tensor
    y: Tensor
    lengths: Tensor
    keys: Tensor

    @property
    def sides(self) -> tuple[Tensor, Tensor]:
        """Width and height of the patch of each pixel, each of shape (P,)."""
        width, height = self.lengths[self.owner].unbind(1)
        return width, height

    def random_colors(self, *parts: Tensor) -> Tensor:
        """A random colour for each pixel: the same where owner and ``parts`` are the same.

        Args:
            parts: int64 Tensors of shape (P,).

        Returns:
            float32 Tensor of shape (P, 3), RGB, whole numbers 0..255.
        """
        # Without parts a hash an object does.
        keys = self.keys[self.owner] if parts else self.keys
        bits = hash32(_SALT, *keys.unbind(1), *parts)
        colors = torch.stack([(bits >> shift) & 0xFF for shift in (24, 16, 8)], dim=1).float()
        return colors if parts else colors[self.owner]


class Pattern:
    """What is painted on a patch, by the name that ``ATTACK.TRIGGER.PATCH.PATTERN`` gives.

    Args:
        trigger: its colours, cells, picture, and values of the pattern's own keys.
        tensors: take the place of those of :meth:`tensors` that they name.
    """

    #: Whether a trigger must come with a picture; those of other patterns must not.
    needs_picture: ClassVar[bool] = False

    def __init__(self, trigger: PatchSpec, tensors: Mapping[str, Tensor] | None = None) -> None:
        self.trigger = trigger
        self.given = dict(tensors or {})

    def tensors(self) -> dict[str, Tensor]:
        """What a search may optimise, as of :meth:`d2defense.triggers.Trigger.tensors`; 0..1."""
        return {}

    def stored(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """The fields of a patch whose pattern has these :meth:`tensors`.

        Raises:
            NotImplementedError: the pattern has none.
        """
        raise NotImplementedError(f"the pattern {self.trigger.pattern!r} has no tensors")

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Put the pattern's own keys with their defaults into its node, which is empty as yet.

        It is ``ATTACK.TRIGGER.PATCH.SETTINGS.<NAME>``.
        """

    @classmethod
    def default_settings(cls) -> dict[str, Any]:
        """The pattern's own keys with their defaults."""
        node = CfgNode()
        cls.add_config(node)
        return dict(node)

    @classmethod
    def settings_schema(cls) -> dict[str, Any]:
        """JSON schema of ``settings`` of a trigger bank's entry with this pattern.

        The pattern's own keys, each of its default's type. A pattern that takes less of a value, or
        more, says so in a schema of its own.
        """
        return {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                key: schema_of(default) for key, default in cls.default_settings().items()
            },
        }

    @property
    def settings(self) -> dict[str, Any]:
        """Values of the pattern's own keys."""
        return self.default_settings() | dict(self.trigger.settings)

    def check(self) -> None:
        """Check the values of the pattern's own keys.

        Raises:
            ValueError: one cannot be used; the message names the key.
        """

    def paint(self, pixels: PatchPixels) -> Tensor:
        """The colour of every pixel.

        Returns:
            float32 Tensor of shape (P, 3), or (1, 3) where all pixels are alike: RGB, 0..255.
        """
        raise NotImplementedError

    def covers(self, pixels: PatchPixels) -> Tensor | None:
        """Which pixels of its rectangle a patch covers; None where it covers all of them.

        Returns:
            bool Tensor of shape (P,), or None.
        """
        return None

    def color(self, pixels: PatchPixels) -> Tensor:
        """``color`` of the trigger, float32 of shape (1, 3)."""
        return torch.tensor([self.trigger.color], dtype=torch.float32, device=pixels.x.device)

    def blend(self, share: Tensor, pixels: PatchPixels) -> Tensor:
        """From ``color`` of the trigger at a share of 0 to ``second_color`` at 1.

        Args:
            share: Tensor of shape (P,).
            pixels: that are painted.
        """
        first = self.color(pixels)
        second = torch.tensor([self.trigger.second_color], dtype=first.dtype, device=first.device)
        return first + share[:, None] * (second - first)

    def cell(self, pixels: PatchPixels) -> tuple[Tensor, Tensor]:
        """Column and row of the field that each pixel lies in, with ``cells`` fields across."""
        width, height = pixels.sides
        cells = self.trigger.cells
        return pixels.x * cells // width, pixels.y * cells // height
