# SPDX-License-Identifier: Apache-2.0
"""Triggers that change the pixels of a place, each place by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .base import Trigger
from .checks import check_images
from .pictures import scale_picture
from .randomness import place_keys

#: XYXY in whole pixels.
Rectangle = tuple[int, int, int, int]


@dataclass(frozen=True)
class Region:
    """The part that lies on the image of the area that a trigger changes for a place.

    Attributes:
        pixels: float Tensor of shape (3, h, w), RGB, 0..1.
        size: (width, height) of the whole area in pixels, at least 1; the place's own, unless the
            family's :meth:`RegionTrigger.area` is another one.
        offset: (x, y) of the left top pixel of ``pixels`` inside the whole area.
        place: XYXY in whole pixels of the image.
        key: int64 Tensor of shape (K,): whole numbers that are this place's own, for
            :func:`~d2defense.triggers.randomness.uniform`.
    """

    pixels: Tensor
    size: tuple[int, int]
    offset: tuple[int, int]
    place: Rectangle
    key: Tensor

    def cut(self, field: Tensor) -> Tensor:
        """What of a field over the whole area lies on the image.

        Args:
            field: Tensor of shape (..., height, width) of the whole area.
        """
        (x, y), (height, width) = self.offset, self.pixels.shape[-2:]
        return field[..., y : y + height, x : x + width]

    def scaled(self, picture: Tensor) -> Tensor:
        """What of a picture lies on the image that is scaled over the whole area.

        Args:
            picture: float Tensor of shape (..., H, W).

        Returns:
            Tensor of shape (..., h, w).
        """
        (x, y), (height, width) = self.offset, self.pixels.shape[-2:]
        return scale_picture(picture, self.size, (x, y, x + width, y + height))

    def grid(self) -> tuple[Tensor, Tensor]:
        """Column (w,) and row (h, 1) of each pixel inside the whole area, of ``pixels``' type."""
        (x, y), (height, width) = self.offset, self.pixels.shape[-2:]
        like = {"dtype": self.pixels.dtype, "device": self.pixels.device}
        return torch.arange(x, x + width, **like), torch.arange(y, y + height, **like)[:, None]


@dataclass(frozen=True)
class RegionTrigger(Trigger):
    """A trigger that changes one rectangle a place: a family says what becomes of its pixels."""

    def area(
        self,
        place: Rectangle,
        image_size: tuple[int, int],
        key: Tensor,
        tensors: Mapping[str, Tensor],
    ) -> Rectangle:
        """The rectangle that changes; the place itself by default.

        Args:
            place: a part of it at least lies on the image.
            image_size: (height, width).
            key: as :class:`Region` has it, on the CPU.
            tensors: as :meth:`transform` gets them.
        """
        return place

    def transform(self, region: Region, tensors: Mapping[str, Tensor]) -> Tensor:
        """The new pixels of a region.

        Args:
            region: what is there; its pixels must not be written to.
            tensors: those of :meth:`tensors`, or what takes their place, on the images' device.

        Returns:
            Tensor of the shape of ``region.pixels``, RGB; what lies outside of 0..1 is cut.
        """
        raise NotImplementedError

    def apply(
        self,
        images: Tensor,
        image_sizes: Sequence[tuple[int, int]],
        places: Sequence[Tensor],
        seeds: Sequence[int],
        image_format: str = "BGR",
        tensors: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """As :meth:`Trigger.apply`; a place's sides are rounded to whole pixels, one at least."""
        check_images(images, image_format)
        exact = images.is_floating_point()
        computed = images.clone() if exact else images.float()
        own = self.tensors() | dict(tensors or {})
        own = {name: value.to(computed) for name, value in own.items()}
        keys = place_keys(self.seed, seeds, list(map(len, places)))
        for index, (size, boxes) in enumerate(zip(image_sizes, places, strict=True)):
            for number, place in enumerate(whole_rectangles(boxes)):
                if _visible(place, size) is not None:
                    key = keys[index][number]
                    self._put_(computed[index], size, place, key, image_format, own)
        return computed if exact else computed.round().clamp(0, 255).to(images.dtype)

    def _put_(
        self,
        image: Tensor,
        size: tuple[int, int],
        place: Rectangle,
        key: Tensor,
        image_format: str,
        tensors: Mapping[str, Tensor],
    ) -> None:
        x1, y1, x2, y2 = area = self.area(place, size, key, tensors)
        visible = _visible(area, size)
        if visible is None:
            return
        left, top, right, bottom = visible
        # A copy, since autograd keeps what is read, and the image is written to below.
        pixels = image[:, top:bottom, left:right].clone() / 255
        region = Region(
            pixels.flip(0) if image_format == "BGR" else pixels,
            size=(x2 - x1, y2 - y1),
            offset=(left - x1, top - y1),
            place=place,
            key=key.to(image.device),
        )
        changed = self.transform(region, tensors).clamp(0, 1) * 255
        image[:, top:bottom, left:right] = changed.flip(0) if image_format == "BGR" else changed


def _visible(rectangle: Rectangle, size: tuple[int, int]) -> Rectangle | None:
    """What of a rectangle lies on an image of a size (height, width); None if nothing does."""
    (height, width), (x1, y1, x2, y2) = size, rectangle
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    return (left, top, right, bottom) if left < right and top < bottom else None


def whole_rectangles(boxes: Tensor) -> list[Rectangle]:
    """Boxes as whole pixels, XYXY: the left top corner and the sides rounded, one pixel at least.

    Halves go to the even neighbour, as in NumPy.
    """
    boxes = boxes.detach().double().cpu().reshape(-1, 4)
    start = boxes[:, :2].round()
    length = (boxes[:, 2:] - boxes[:, :2]).round().clamp(min=1)
    return [tuple(row) for row in torch.cat([start, start + length], dim=1).long().tolist()]
