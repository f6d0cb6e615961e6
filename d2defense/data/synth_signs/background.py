# SPDX-License-Identifier: Apache-2.0
"""Textured backgrounds: streets, walls, hedges, boards and skies, all from random numbers.

Every random draw is independent of the picture's size, so one generator state gives the same
background at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

Generator = np.random.Generator


def value_noise(rng: Generator, size: int, cells: int, octaves: int = 3) -> np.ndarray:
    """Fractal value noise.

    Args:
        rng: source of randomness.
        size: side of the result in pixels.
        cells: cells along a side in the coarsest octave; each further octave doubles them and
            halves the amplitude.
        octaves: number of octaves.

    Returns:
        float32 array of shape (size, size), roughly 0..1.
    """
    total = np.zeros((size, size), np.float32)
    weight, weights = 1.0, 0.0
    for octave in range(octaves):
        grid = rng.random((cells * 2**octave + 1,) * 2, dtype=np.float32)
        interpolation = cv2.INTER_CUBIC if octave == 0 else cv2.INTER_LINEAR
        total += weight * cv2.resize(grid, (size, size), interpolation=interpolation)
        weights += weight
        weight *= 0.5
    return total / np.float32(weights)


def _colour(rng: Generator, *choices: tuple[int, int, int], jitter: float = 14.0) -> np.ndarray:
    """One of ``choices`` with every channel moved by up to ``jitter``; float32 of shape (3,)."""
    base = np.array(choices[rng.integers(len(choices))], np.float32)
    return base + rng.uniform(-jitter, jitter, 3).astype(np.float32)


def _blend(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Mix two colours by a weight map of shape (H, W); float32 of shape (H, W, 3)."""
    if first.ndim > 1:
        return first + (second - first) * weight[..., None]
    # Whole planes at a time: broadcasting over the short last axis is several times slower.
    change = second - first
    return cv2.merge([first[channel] + change[channel] * weight for channel in range(3)])


def _shaded(colour: np.ndarray, tone: np.ndarray) -> np.ndarray:
    """A colour or picture of shape (3,) or (H, W, 3), multiplied by a tone of shape (H, W)."""
    if colour.ndim > 1:
        return colour * cv2.merge([tone, tone, tone])
    return cv2.merge([colour[channel] * tone for channel in range(3)])


def _ramp(size: int, start: float = 0.0, stop: float = 1.0) -> np.ndarray:
    """Weight map that runs from ``start`` at the top to ``stop`` at the bottom, (size, size)."""
    return np.repeat(np.linspace(start, stop, size, dtype=np.float32)[:, None], size, axis=1)


def _polygon(image: np.ndarray, points: list[tuple[float, float]], colour: np.ndarray) -> None:
    """Fill a polygon given in shares of the side; clipped to the picture."""
    pixels = np.round(np.array(points) * image.shape[0] * 16).astype(np.int32)
    cv2.fillPoly(image, [pixels], colour.tolist(), lineType=cv2.LINE_8, shift=4)


def _rectangle(
    image: np.ndarray, x0: float, y0: float, x1: float, y1: float, colour: np.ndarray
) -> None:
    size = image.shape[0]
    rows = slice(max(0, round(y0 * size)), max(0, round(y1 * size)))
    columns = slice(max(0, round(x0 * size)), max(0, round(x1 * size)))
    image[rows, columns] = colour


def _sky(rng: Generator, size: int) -> np.ndarray:
    top = _colour(rng, (74, 128, 190), (96, 146, 196), (120, 134, 150), (58, 76, 128))
    bottom = _colour(rng, (176, 200, 214), (196, 186, 170), (168, 176, 184), (214, 160, 124))
    sky = _blend(top, bottom, _ramp(size, 0.0, 1.5).clip(0, 1))
    clouds = np.clip((value_noise(rng, size, 3, 4) - 0.48) * 4.0, 0, 0.8)
    return _blend(sky, np.float32([208, 210, 212]), clouds)


def _add_buildings(rng: Generator, image: np.ndarray, horizon: float) -> None:
    left = -0.1 * rng.random()
    while left < 1.0:
        width, height = rng.uniform(0.12, 0.3), rng.uniform(0.1, 0.85 * horizon)
        wall = _colour(
            rng, (128, 100, 84), (110, 112, 118), (150, 138, 118), (92, 74, 70), (84, 94, 110)
        )
        top = horizon - height
        _rectangle(image, left, top, left + width, horizon, wall)
        _rectangle(image, left, top, left + width, top + 0.012, wall * 0.6)
        glass = _colour(rng, (44, 54, 70), (70, 84, 96), (150, 132, 84)) * 0.9
        columns, pitch = int(rng.integers(2, 5)), rng.uniform(0.05, 0.075)
        for row in range(int((height - 0.03) / pitch)):
            for column in range(columns):
                x = left + width * (column + 0.25) / columns
                y = top + 0.03 + row * pitch
                shade = glass * (0.8 + 0.4 * rng.random())
                _rectangle(image, x, y, x + 0.5 * width / columns, y + 0.55 * pitch, shade)
        left += width + (rng.uniform(0.0, 0.12) if rng.random() < 0.5 else 0.0)


def _add_trees(rng: Generator, image: np.ndarray, horizon: float) -> None:
    size = image.shape[0]
    for _ in range(int(rng.integers(2, 6))):
        x, radius = rng.uniform(-0.05, 1.05), rng.uniform(0.05, 0.12)
        crown = horizon - rng.uniform(0.06, 0.14) - radius * 0.6
        _rectangle(image, x - 0.008, crown, x + 0.008, horizon, np.float32([62, 46, 34]))
        green = _colour(rng, (42, 84, 36), (64, 98, 44), (36, 66, 42), (112, 92, 40))
        for _ in range(14):
            angle, distance = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.random())
            centre = (x + distance * np.cos(angle), crown + 0.8 * distance * np.sin(angle))
            blob = green * rng.uniform(0.7, 1.3)
            cv2.circle(
                image,
                (round(centre[0] * size), round(centre[1] * size)),
                max(1, round(radius * rng.uniform(0.3, 0.55) * size)),
                blob.tolist(),
                -1,
            )


def street(rng: Generator, size: int) -> np.ndarray:
    """A road in perspective under a sky, with buildings or trees on the horizon."""
    image = _sky(rng, size)
    horizon = rng.uniform(0.42, 0.62)
    if rng.random() < 0.6:
        _add_buildings(rng, image, horizon)
    else:
        hills = horizon - 0.02 - 0.12 * value_noise(rng, 64, 4, 2)[0]
        far = _colour(rng, (74, 98, 92), (92, 106, 120), (88, 96, 64))
        outline = [(x / 63, float(y)) for x, y in enumerate(hills)]
        _polygon(image, [*outline, (1, horizon), (0, horizon)], far)
    _add_trees(rng, image, horizon)

    grain = value_noise(rng, size, 24, 3)
    verge = _colour(rng, (72, 104, 46), (96, 110, 56), (134, 122, 88), (118, 116, 112))
    row = round(horizon * size)
    image[row:] = _blend(verge * 0.7, verge * 1.2, grain)[row:]

    vanishing, spread = rng.uniform(0.3, 0.7), rng.uniform(0.45, 0.8)
    middle = vanishing + rng.uniform(-0.2, 0.2)

    def across(position: float, depth: float) -> tuple[float, float]:
        """Point of the road at ``position`` (-1 left edge, 1 right) and ``depth`` (0 far, 1)."""
        centre = vanishing + (middle - vanishing) * depth
        return (
            centre + position * (0.02 + (spread - 0.02) * depth),
            horizon + (1.02 - horizon) * depth,
        )

    def strip(left: float, right: float, far: float, near: float, colour: np.ndarray) -> None:
        corners = [across(left, far), across(right, far), across(right, near), across(left, near)]
        _polygon(image, corners, colour)

    asphalt = _colour(rng, (84, 84, 88), (104, 102, 100), (68, 70, 76), jitter=8)
    kerb = _colour(rng, (150, 148, 142), (122, 118, 112), jitter=8)
    strip(-1.16, 1.16, 0, 1, kerb)
    strip(-1, 1, 0, 1, asphalt)
    paint = _colour(rng, (196, 194, 184), (204, 176, 84), jitter=8)
    strip(-0.93, -0.87, 0, 1, paint)
    strip(0.87, 0.93, 0, 1, paint)
    depth = rng.uniform(0.02, 0.06)
    while depth < 1:
        strip(-0.035, 0.035, depth, min(1.0, depth * 1.45), paint)
        depth *= 2.1
    image[row:] = _shaded(image[row:], 0.86 + 0.28 * grain[row:])
    return image


def brick_wall(rng: Generator, size: int) -> np.ndarray:
    """Courses of bricks, every brick in its own shade, with mortar between."""
    courses = int(rng.integers(7, 14))
    height, width = 1 / courses, rng.uniform(1.9, 2.6) / courses
    mortar = _colour(rng, (150, 144, 134), (108, 102, 98), (172, 164, 150))
    brick = _colour(rng, (140, 66, 48), (156, 92, 64), (112, 60, 52), (130, 112, 96), (96, 98, 104))
    image = np.empty((size, size, 3), np.float32)
    image[:] = mortar
    joint, shift = 0.1 * height, rng.random() * width
    for course in range(courses):
        left = -shift - (course % 2) * width / 2
        while left < 1:
            shade = brick * rng.uniform(0.75, 1.2) + rng.uniform(-8, 8, 3).astype(np.float32)
            _rectangle(
                image,
                max(0.0, left + joint),
                course * height + joint,
                left + width,
                (course + 1) * height,
                shade,
            )
            left += width
    return _shaded(image, 0.72 + 0.5 * value_noise(rng, size, 6, 4))


def hedge(rng: Generator, size: int) -> np.ndarray:
    """Leaves: many small ellipses, dark ones below and light ones above."""
    green = _colour(rng, (58, 96, 40), (84, 110, 46), (44, 82, 52), (134, 106, 44), (110, 62, 36))
    image = _blend(green * 0.25, green * 0.7, value_noise(rng, size, 6, 3))
    count = int(rng.integers(220, 380))
    centres, lengths = rng.random((count, 2)), rng.uniform(0.014, 0.034, count)
    angles, shades = rng.uniform(0, 180, count), rng.uniform(-0.25, 0.2, count)
    tints = rng.uniform(-10, 10, (count, 3)).astype(np.float32)
    for index in range(count):
        colour = green * (0.8 + 0.65 * index / count + shades[index]) + tints[index]
        axes = (
            max(1, round(lengths[index] * size)),
            max(1, round(0.45 * lengths[index] * size)),
        )
        centre = (round(centres[index, 0] * size), round(centres[index, 1] * size))
        cv2.ellipse(image, centre, axes, angles[index], 0, 360, colour.tolist(), -1)
    return image


def boards(rng: Generator, size: int) -> np.ndarray:
    """Wooden boards or corrugated metal: stripes with grain along them."""
    count = int(rng.integers(6, 16))
    base = _colour(rng, (130, 98, 66), (104, 82, 64), (96, 108, 116), (134, 138, 138), (70, 96, 90))
    position = np.linspace(0, count, size, endpoint=False, dtype=np.float32)
    shades = rng.uniform(0.75, 1.15, count).astype(np.float32)
    if rng.random() < 0.5:
        profile = shades[position.astype(int)] * np.where(position % 1 < 0.07, 0.45, 1.0)
    else:
        profile = 0.85 + 0.25 * np.sin(2 * np.pi * position)
    fibres = cv2.resize(
        rng.random((5, 129), dtype=np.float32), (size, size), interpolation=cv2.INTER_LINEAR
    )
    tone = profile[None, :].astype(np.float32) * (0.8 + 0.35 * fibres)
    tone *= 0.85 + 0.3 * value_noise(rng, size, 4, 3)
    if rng.random() < 0.4:
        tone = np.ascontiguousarray(tone.T)
    return _shaded(base, tone)


def concrete(rng: Generator, size: int) -> np.ndarray:
    """Plaster or concrete with stains, slab joints and cracks."""
    light = _colour(rng, (162, 158, 150), (146, 138, 126), (128, 134, 138), (168, 148, 118))
    stain = light * _colour(rng, (140, 132, 120), (150, 120, 90), jitter=8) / 255
    image = _blend(stain, light, value_noise(rng, size, 3, 6).clip(0, 1))
    if rng.random() < 0.6:
        pitch, offset = rng.uniform(0.3, 0.6), rng.random(2)
        for axis in range(2):
            for line in np.arange(offset[axis] * pitch, 1, pitch):
                box = (line, 0, line + 0.012, 1) if axis else (0, line, 1, line + 0.012)
                _rectangle(image, *box, colour=stain * 0.6)
    for _ in range(int(rng.integers(1, 4))):
        steps = np.cumsum(rng.normal(0, 0.03, (18, 2)) + rng.normal(0, 0.02, 2), axis=0)
        path = np.round((rng.random(2) + steps) * size).astype(np.int32)
        cv2.polylines(image, [path], False, (stain * 0.45).tolist(), max(1, size // 200))
    return image


def facade(rng: Generator, size: int) -> np.ndarray:
    """The front of a building: rows of windows with frames and reflections."""
    wall = _colour(rng, (146, 126, 104), (120, 110, 106), (108, 120, 130), (150, 104, 84))
    image = _shaded(wall, 0.8 + 0.35 * value_noise(rng, size, 5, 4))
    columns, rows = int(rng.integers(3, 6)), int(rng.integers(3, 6))
    frame = wall * rng.uniform(0.45, 0.7)
    offset = rng.uniform(-0.5, 0.5, 2)
    for row in range(-1, rows + 1):
        y = (row + 0.22 + offset[0]) / rows
        _rectangle(image, 0, y - 0.16 / rows, 1, y - 0.1 / rows, wall * 0.62)
        for column in range(-1, columns + 1):
            x = (column + 0.25 + offset[1]) / columns
            width, height = 0.5 / columns, 0.58 / rows
            glass = _colour(rng, (48, 60, 76), (84, 100, 114), (36, 40, 48), (140, 118, 72))
            _rectangle(image, x - 0.01, y - 0.01, x + width + 0.01, y + height + 0.01, frame)
            _rectangle(image, x, y, x + width, y + height, glass)
            _rectangle(image, x, y, x + width, y + height * rng.uniform(0.2, 0.6), glass * 1.25)
            _rectangle(image, x + width / 2 - 0.004, y, x + width / 2 + 0.004, y + height, frame)
    return image


def dusk(rng: Generator, size: int) -> np.ndarray:
    """A sky with hills in layers, lighter with distance."""
    image = _sky(rng, size)
    near = _colour(rng, (40, 58, 44), (54, 50, 62), (72, 66, 44))
    haze = image[-1, 0].copy()
    layers = int(rng.integers(2, 5))
    for layer in range(layers):
        base = 0.45 + 0.5 * layer / layers
        ridge = base + 0.22 * (value_noise(rng, 64, 3, 3)[0] - 0.5)
        colour = haze + (near - haze) * ((layer + 1) / layers)
        points = [(x / 63, float(y)) for x, y in enumerate(ridge)]
        _polygon(image, [*points, (1, 1.05), (0, 1.05)], colour)
    return _shaded(image, 0.88 + 0.24 * value_noise(rng, size, 20, 3))


@dataclass(frozen=True)
class Family:
    """A family of backgrounds.

    Attributes:
        paint: draws one, given a generator and the side in pixels; float32 (size, size, 3), RGB.
        share: how often the family is drawn.
        posts: share of the signs that stand on a post in front of it.
    """

    paint: Callable[[Generator, int], np.ndarray]
    share: float
    posts: float


FAMILIES: tuple[Family, ...] = (
    Family(street, 0.34, 0.85),
    Family(brick_wall, 0.12, 0.25),
    Family(hedge, 0.12, 0.7),
    Family(boards, 0.10, 0.2),
    Family(concrete, 0.10, 0.3),
    Family(facade, 0.12, 0.6),
    Family(dusk, 0.10, 0.8),
)


def choose_family(rng: Generator) -> Family:
    """Draw a family by its share."""
    return FAMILIES[rng.choice(len(FAMILIES), p=[family.share for family in FAMILIES])]
