# SPDX-License-Identifier: Apache-2.0
"""Where the signs of a scene stand: classes, poses, positions, and what of each stays visible.

Scene coordinates are shares of the image's side: x to the right, y downwards, 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from d2defense.data.synth_signs.shapes import SIGN_CLASSES

MAX_OBJECTS = 6
MIN_SIDE = 0.12
"""Least of both sides of every box, as a share of the image's side."""
MAX_OVERLAP = 0.12
"""Highest IoU between two whole outlines' boxes."""
MIN_VISIBLE = 0.75
"""Least share of a sign's area that no other sign covers."""

_COUNT_SHARES = (0.13, 0.20, 0.23, 0.20, 0.14, 0.10)
# The more signs, the smaller the largest, or they would not find room.
_LARGEST_SIDE = (0.485, 0.475, 0.45, 0.41, 0.38, 0.35)
_SMALLEST_SIDE = 0.17
_SMALL_SHARE = 0.06
_TRIES = 30
_MARGIN = 0.012
_MASK_SIDE = 384


@dataclass(frozen=True)
class PlacedSign:
    """One sign of a scene.

    Attributes:
        class_index: index into :data:`~d2defense.data.synth_signs.shapes.SIGN_CLASSES`.
        variant: index of the class's picture.
        homography: float array of shape (3, 3), sign coordinates to scene coordinates.
        outline: float array of shape (N, 2), the whole outline in scene coordinates.
        box: float array of shape (4,), the outline's XYXY box in scene coordinates.
        gain: brightness of the sign, 1 = as painted.
        shade: float array of shape (2,), change of brightness across the sign along x and y.
        on_post: whether the sign stands on a post.
    """

    class_index: int
    variant: int
    homography: np.ndarray
    outline: np.ndarray
    box: np.ndarray
    gain: float
    shade: np.ndarray
    on_post: bool


def _pose(rng: np.random.Generator) -> np.ndarray:
    """Rotation in space followed by a pinhole projection, as a (3, 3) homography."""
    roll = np.deg2rad(np.clip(rng.normal(0, 8), -20, 20))
    yaw, pitch = np.deg2rad(rng.uniform(-32, 32)), np.deg2rad(rng.uniform(-16, 16))
    distance = rng.uniform(2.0, 4.0)
    cr, sr, cy, sy = np.cos(roll), np.sin(roll), np.cos(yaw), np.sin(yaw)
    cp, sp = np.cos(pitch), np.sin(pitch)
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    rotation = about_y @ about_x @ about_z
    homography = np.eye(3)
    homography[:2, :2] = rotation[:2, :2]
    homography[2, :2] = rotation[2, :2] / distance
    return homography


def transform(homography: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a (3, 3) homography to points of shape (N, 2)."""
    homogeneous = points @ homography[:, :2].T + homography[:, 2]
    return homogeneous[:, :2] / homogeneous[:, 2:]


def _bounds(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def _iou(first: np.ndarray, second: np.ndarray) -> float:
    overlap = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    if (overlap <= 0).any():
        return 0.0
    shared = float(overlap.prod())
    return shared / (
        float((first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod()) - shared
    )


def _touch(first: np.ndarray, second: np.ndarray) -> bool:
    return bool((np.minimum(first[2:], second[2:]) > np.maximum(first[:2], second[:2])).all())


def _side(rng: np.random.Generator, count: int) -> float:
    if rng.random() < _SMALL_SHARE:
        return float(rng.uniform(0.13, _SMALLEST_SIDE))
    low, high = np.log(_SMALLEST_SIDE), np.log(_LARGEST_SIDE[count - 1])
    return float(np.exp(rng.uniform(low, high)))


def _draw_sign(
    rng: np.random.Generator, side: float, posts: float, light: float
) -> PlacedSign | None:
    class_index = int(rng.integers(len(SIGN_CLASSES)))
    sign = SIGN_CLASSES[class_index]
    variant = int(rng.integers(sign.variants))
    homography = _pose(rng)
    bounds = _bounds(transform(homography, sign.outline))
    extent = bounds[2:] - bounds[:2]
    scale = side / extent.max()
    if scale * extent.min() < MIN_SIDE + 0.005:
        return None
    room = 1 - 2 * _MARGIN - scale * extent
    corner = _MARGIN + rng.random(2) * room
    place = np.array(
        [
            [scale, 0, corner[0] - scale * bounds[0]],
            [0, scale, corner[1] - scale * bounds[1]],
            [0, 0, 1],
        ]
    )
    homography = place @ homography
    outline = transform(homography, sign.outline)
    return PlacedSign(
        class_index=class_index,
        variant=variant,
        homography=homography,
        outline=outline,
        box=_bounds(outline),
        gain=float(light * rng.uniform(0.82, 1.04)),
        shade=rng.uniform(-0.14, 0.14, 2),
        on_post=bool(rng.random() < posts),
    )


def polygon_area(polygon: np.ndarray) -> float:
    """Area of a simple polygon of shape (N, 2), by the shoelace formula."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def visible_polygons(sign: PlacedSign, above: list[PlacedSign]) -> list[np.ndarray]:
    """What the signs in front of ``sign`` leave of its outline.

    Args:
        sign: the sign behind.
        above: the signs painted after it.

    Returns:
        Polygons of shape (N, 2) in scene coordinates; empty when nothing is left. Splinters of
        less than 2 % of the sign's area are left out.
    """
    above = [other for other in above if _touch(sign.box, other.box)]
    if not above:
        return [sign.outline]
    # A mask around this sign alone: its pixels are far finer than the scene's.
    scale = _MASK_SIDE / (sign.box[2:] - sign.box[:2]).max()
    origin = sign.box[:2] - 4 / scale

    def to_mask(points: np.ndarray) -> np.ndarray:
        return np.round(((points - origin) * scale - 0.5) * 16).astype(np.int32)

    mask = np.zeros((_MASK_SIDE + 8,) * 2, np.uint8)
    cv2.fillPoly(mask, [to_mask(sign.outline)], 1, shift=4)
    whole = int(mask.sum())
    for other in above:
        cv2.fillPoly(mask, [to_mask(other.outline)], 0, shift=4)
    if int(mask.sum()) == whole:
        return [sign.outline]
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    polygons = []
    for contour in contours:
        simple = cv2.approxPolyDP(contour, 0.8, True)[:, 0, :]
        if len(simple) >= 3 and polygon_area(simple.astype(float)) >= 0.02 * whole:
            polygons.append((simple + 0.5) / scale + origin)
    return polygons


def _acceptable(signs: list[PlacedSign]) -> bool:
    for index, sign in enumerate(signs):
        above = signs[index + 1 :]
        if not any(_touch(sign.box, other.box) for other in above):
            continue
        if any(_iou(sign.box, other.box) > MAX_OVERLAP for other in above):
            return False
        polygons = visible_polygons(sign, above)
        if sum(map(polygon_area, polygons)) < MIN_VISIBLE * polygon_area(sign.outline):
            return False
        box = _bounds(np.concatenate(polygons))
        if (box[2:] - box[:2]).min() < MIN_SIDE:
            return False
    return True


def draw_layout(rng: np.random.Generator, posts: float, light: float) -> list[PlacedSign]:
    """Draw 1 to :data:`MAX_OBJECTS` signs that keep to the limits of this module.

    Args:
        rng: source of randomness.
        posts: share of the signs that stand on a post.
        light: brightness that the signs share.

    Returns:
        The signs in painting order, smaller (farther) ones first.
    """
    count = 1 + int(rng.choice(MAX_OBJECTS, p=_COUNT_SHARES))
    signs: list[PlacedSign] = []
    for _ in range(count):
        for _ in range(_TRIES):
            sign = _draw_sign(rng, _side(rng, count), posts, light)
            if sign is None:
                continue
            candidate = sorted([*signs, sign], key=lambda s: float((s.box[2:] - s.box[:2]).max()))
            if _acceptable(candidate):
                signs = candidate
                break
    return signs
