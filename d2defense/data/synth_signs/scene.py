# SPDX-License-Identifier: Apache-2.0
"""One image of the dataset with its annotations, from (version, seed, index) and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from d2defense.data.synth_signs.background import choose_family
from d2defense.data.synth_signs.layout import (
    PlacedSign,
    draw_layout,
    polygon_area,
    transform,
    visible_polygons,
)
from d2defense.data.synth_signs.shapes import TEMPLATE_MARGIN, TEMPLATE_SIZES, template

_SIGN_OVERSAMPLING = 3
_BACKGROUND_OVERSAMPLING = 2
_REFERENCE_SIZE = 128


@dataclass(frozen=True)
class SceneObject:
    """One annotated sign.

    Attributes:
        class_index: index into :data:`~d2defense.data.synth_signs.shapes.SIGN_CLASSES`.
        polygons: arrays of shape (N, 2), the visible part of the outline, in pixels (a pixel
            covers [i, i + 1)), rounded to hundredths.
    """

    class_index: int
    polygons: list[np.ndarray]

    @property
    def box(self) -> np.ndarray:
        """XYXY box around the polygons, in pixels; float array of shape (4,)."""
        points = np.concatenate(self.polygons)
        return np.concatenate([points.min(axis=0), points.max(axis=0)])

    @property
    def area(self) -> float:
        """Area of the polygons, in square pixels."""
        return sum(map(polygon_area, self.polygons))


@dataclass(frozen=True)
class Scene:
    """A rendered image.

    Attributes:
        image: uint8 array of shape (size, size, 3), RGB.
        objects: its signs, in painting order.
    """

    image: np.ndarray
    objects: list[SceneObject]


def _add_post(image: np.ndarray, sign: PlacedSign, light: float) -> None:
    """Paint a round metal post from behind the sign down to the lower edge of the image."""
    size = image.shape[0]
    width = max(1.5, 0.075 * (sign.box[2] - sign.box[0]) * size)
    x, top = transform(sign.homography, np.array([[0.0, 0.0]]))[0] * size
    first, last = max(0, int(x - width / 2)), min(size, int(np.ceil(x + width / 2)))
    across = (np.arange(first, last) + 0.5 - x) / (width / 2)
    # A cylinder lit from the left: bright beside its middle, dark at the rims.
    tone = 150 * light * (0.45 + 0.55 * np.sqrt(np.clip(1 - (across + 0.3) ** 2 / 1.7, 0, 1)))
    cover = np.clip(width / 2 + 0.5 - np.abs(np.arange(first, last) + 0.5 - x), 0, 1)
    rows = slice(max(0, int(top)), size)
    weight = cover[None, :, None].astype(np.float32)
    column = tone[None, :, None].astype(np.float32)
    image[rows, first:last] += (column - image[rows, first:last]) * weight


def paint_sign(image: np.ndarray, sign: PlacedSign) -> None:
    """Paint one sign onto an image, in place.

    Args:
        image: float32 array of shape (size, size, 3), RGB, 0..255.
        sign: the sign; all of its outline lies in the image.
    """
    size = image.shape[0]
    low = np.maximum(np.floor(sign.box[:2] * size).astype(int) - 1, 0)
    high = np.minimum(np.ceil(sign.box[2:] * size).astype(int) + 1, size)
    width, height = (int(extent) for extent in high - low)

    span = float((sign.box[2:] - sign.box[:2]).max()) * size * _SIGN_OVERSAMPLING
    side = next((s for s in TEMPLATE_SIZES if s >= span), TEMPLATE_SIZES[-1])
    inner = side * (1 - 2 * TEMPLATE_MARGIN)
    # warpPerspective names pixel centres by integers, scene coordinates name pixel edges.
    to_sign = np.array(
        [
            [1 / inner, 0, (0.5 - side / 2) / inner],
            [0, 1 / inner, (0.5 - side / 2) / inner],
            [0, 0, 1],
        ]
    )
    scale = size * _SIGN_OVERSAMPLING
    to_window = np.array(
        [
            [scale, 0, -low[0] * _SIGN_OVERSAMPLING - 0.5],
            [0, scale, -low[1] * _SIGN_OVERSAMPLING - 0.5],
            [0, 0, 1],
        ]
    )
    fine = cv2.warpPerspective(
        template(sign.class_index, sign.variant, side),
        to_window @ sign.homography @ to_sign,
        (width * _SIGN_OVERSAMPLING, height * _SIGN_OVERSAMPLING),
        flags=cv2.INTER_LINEAR,
    )
    picture = cv2.resize(fine, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)

    light = (
        sign.gain
        + sign.shade[0] * np.linspace(-1, 1, width, dtype=np.float32)[None, :]
        + sign.shade[1] * np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    )
    window = image[low[1] : high[1], low[0] : high[0]]
    window *= 1 - picture[..., 3:] / 255
    window += picture[..., :3] * light[..., None].astype(np.float32)


def _light_scene(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Tint, slope of brightness and, sometimes, the soft edge of a shadow across the scene."""
    size = image.shape[0]
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.14)
    along = np.cos(angle) * axis[None, :] + np.sin(angle) * axis[:, None]
    light = 1 + slope * along
    edge, softness, depth = rng.uniform(-0.6, 0.6), rng.uniform(0.03, 0.2), rng.uniform(0.1, 0.35)
    if rng.random() < 0.3:
        light *= 1 - depth / (1 + np.exp((along - edge) / softness))
    tint = 1 + rng.uniform(-0.06, 0.06, 3).astype(np.float32)
    light = light.astype(np.float32)
    return image * cv2.merge([light, light, light]) * tint


def _blur(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Defocus or camera shake, mild: below one pixel at 128 pixels, in proportion above."""
    pixel = image.shape[0] / _REFERENCE_SIZE
    kind, sigma, angle = rng.random(), rng.uniform(0.3, 0.75), rng.uniform(0, np.pi)
    if kind < 0.45:
        return cv2.GaussianBlur(image, (0, 0), sigma * pixel)
    if kind < 0.6:
        reach = max(1, round(1.2 * pixel))
        kernel = np.zeros((2 * reach + 1,) * 2, np.float32)
        step = np.array([np.cos(angle), np.sin(angle)]) * reach * 0.8 * 16
        ends = np.round(reach * 16 + np.array([-step, step])).astype(int)
        first, second = (tuple(map(int, end)) for end in ends)
        cv2.line(kernel, first, second, 1.0, 1, cv2.LINE_8, 4)
        return cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT)
    return image


def _pixel_polygons(sign: PlacedSign, above: list[PlacedSign], size: int) -> list[np.ndarray]:
    return [np.round(polygon * size, 2) for polygon in visible_polygons(sign, above)]


def render_scene(version: int, seed: int, index: int, image_size: int) -> Scene:
    """Render one image.

    The same (version, seed, index) gives the same bytes at one size, and the same scene, but for
    sensor noise, at all sizes. No other image is needed to make it.

    Args:
        version: version of the dataset.
        seed: seed of the split.
        index: index of the image in its split.
        image_size: side of the square image in pixels.

    Returns:
        The image and its annotated signs.
    """
    streams = np.random.SeedSequence([version, seed, index]).spawn(4)
    layout_rng, background_rng, light_rng, sensor_rng = (
        np.random.Generator(np.random.PCG64(stream)) for stream in streams
    )
    light = float(light_rng.uniform(0.78, 1.02))
    family = choose_family(background_rng)
    fine = family.paint(background_rng, image_size * _BACKGROUND_OVERSAMPLING)
    image = cv2.resize(fine, (image_size, image_size), interpolation=cv2.INTER_AREA)
    # The background is a little darker and duller than the signs, as reflective paint makes it.
    image = np.clip(image, 0, 225) * np.float32(0.95 * light)

    signs = draw_layout(layout_rng, family.posts, light)
    for sign in signs:
        if sign.on_post:
            _add_post(image, sign, light)
    for sign in signs:
        paint_sign(image, sign)

    image = _blur(light_rng, _light_scene(light_rng, image))
    spread = np.float32(light_rng.uniform(1.0, 6.0))
    image = image + spread * sensor_rng.standard_normal(image.shape, dtype=np.float32)
    objects = [
        SceneObject(sign.class_index, _pixel_polygons(sign, signs[position + 1 :], image_size))
        for position, sign in enumerate(signs)
    ]
    return Scene(np.clip(np.rint(image), 0, 255).astype(np.uint8), objects)
