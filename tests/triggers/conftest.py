# SPDX-License-Identifier: Apache-2.0
"""The definition of a trigger that fills its places, in NumPy, and places of every awkward kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor


class Batch(NamedTuple):
    """What ``Trigger.apply`` is given."""

    images: Tensor
    image_sizes: list[tuple[int, int]]
    places: list[Tensor]
    seeds: list[int]


class Place(NamedTuple):
    """What a family's definition is given: the visible part of a place."""

    pixels: np.ndarray
    """(h, w, 3), RGB, 0..1."""
    width: int
    """Of the whole place."""
    height: int
    left: int
    """First visible column inside the whole place."""
    top: int
    key: tuple[int, ...]

    def visible(self, field: np.ndarray) -> np.ndarray:
        """What of a field (height, width, ...) over the whole place is visible."""
        rows, columns = self.pixels.shape[:2]
        return field[self.top : self.top + rows, self.left : self.left + columns]


def _finalizer(x: int) -> int:
    x ^= x >> 16
    x = x * 0x85EBCA6B % 2**32
    x ^= x >> 13
    x = x * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


def _uniform(*parts: int) -> float:
    state = 0
    for part in parts:
        state = _finalizer((state + 0x9E3779B9) % 2**32 ^ part % 2**32)
    return state / 2**32


def _stamp(
    seed: int, transform: Callable[[Place], np.ndarray], batch: Batch, image_format: str
) -> np.ndarray:
    images = batch.images.double().permute(0, 2, 3, 1).numpy().copy()
    if image_format == "BGR":
        images = images[..., ::-1].copy()
    for image, (rows, columns), boxes, image_seed in zip(
        images, batch.image_sizes, batch.places, batch.seeds, strict=True
    ):
        for number, (x1, y1, x2, y2) in enumerate(boxes.double().tolist()):
            x, y = round(x1), round(y1)
            width, height = max(1, round(x2 - x1)), max(1, round(y2 - y1))
            left, top = max(x, 0), max(y, 0)
            right, bottom = min(x + width, columns), min(y + height, rows)
            if right <= left or bottom <= top:
                continue
            key = (seed % 2**32, image_seed % 2**32, image_seed >> 32, number)
            place = Place(
                image[top:bottom, left:right] / 255, width, height, left - x, top - y, key
            )
            image[top:bottom, left:right] = transform(place).clip(0, 1) * 255
    if not batch.images.is_floating_point():
        images = images.round()
    return (images[..., ::-1] if image_format == "BGR" else images).transpose(0, 3, 1, 2)


def _awkward(dtype: torch.dtype = torch.uint8) -> Batch:
    rng = np.random.default_rng(1)
    sizes = [(41, 57), (60, 33), (5, 7), (24, 24)]
    images = torch.from_numpy(rng.integers(0, 256, (4, 3, 60, 57))).to(dtype)
    places = [
        # Fractions, halves; cut on the left, top, right, bottom; overlapping; one pixel; outside.
        [[3.5, 4.5, 20.25, 17.75], [-6.3, 5, 9, 20], [30, -4, 41.5, 9], [49, 20, 70, 33],
         [20, 30, 31, 55], [22, 28, 40, 39], [11, 12, 12, 13], [56, 40, 57, 41],
         [60, 2, 80, 9], [-20, -20, -3, -3], [25, 15, 25.2, 15.1]],
        [[-8, -8, 50, 80], [5, 5, 6, 40], [2, 50, 30, 51]],
        [],
        [[0, 0, 24, 24]],
    ]  # fmt: skip
    seeds = [0, 7, 2**40 + 5, 2**63 - 1]
    return Batch(images, sizes, [torch.tensor(p).reshape(-1, 4) for p in places], seeds)


@pytest.fixture
def uniform_by_hand() -> Callable[..., float]:
    """A number in [0, 1) from whole numbers, by MurmurHash3's finalizer as published."""
    return _uniform


@pytest.fixture
def stamp_by_hand() -> Callable[..., np.ndarray]:
    """A function (seed, transform, batch, image_format) to float images of shape (G, 3, H, W).

    ``transform`` takes a :class:`Place` to its new pixels.
    """
    return _stamp


@pytest.fixture
def awkward_batch() -> Callable[..., Batch]:
    """A function from a data type to images with places of every awkward kind."""
    return _awkward


@pytest.fixture
def refuses() -> Callable[..., None]:
    """A function that asserts that a family refuses field values with one line that says why."""

    def check(family: type, values: dict[str, object], words: str | Sequence[str]) -> None:
        with pytest.raises(ValueError) as caught:
            family(name="it", **values)
        message = str(caught.value)
        assert message.startswith("trigger it: ") and "\n" not in message
        assert all(word in message for word in ([words] if isinstance(words, str) else words))

    return check
