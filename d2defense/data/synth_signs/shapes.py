# SPDX-License-Identifier: Apache-2.0
"""The sign classes: outline polygons, glyphs and the flat pictures that scenes are made of.

Sign coordinates: the sign's outline fills [-0.5, 0.5] along its longer side, x to the right and
y downwards, origin at the centre of the outline's bounding box.

The centres of the signs are dark or saturated and their whites are below 235, so that a pure
white patch on a centre is a change that can be seen on every class.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

Colour = tuple[int, int, int]
"""Red, green, blue, each 0..255."""

TEMPLATE_SIZES = (64, 128, 256, 512)
"""Sides of the square pictures of a sign, in pixels; a scene picks the one nearest its need."""

_OVERSAMPLING = 3

RED: Colour = (186, 22, 28)
AMBER: Colour = (244, 176, 20)
YELLOW: Colour = (238, 196, 38)
LIME: Colour = (188, 214, 32)
BLUE: Colour = (20, 72, 168)
GREEN: Colour = (14, 108, 66)
CHARCOAL: Colour = (34, 36, 40)
BLACK: Colour = (18, 18, 20)
OFF_WHITE: Colour = (226, 228, 226)


def _regular(corners: int, phase_deg: float, radius: float) -> np.ndarray:
    angles = np.deg2rad(phase_deg + 360.0 * np.arange(corners) / corners)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _rounded(polygon: np.ndarray, radius: float, steps: int = 4) -> np.ndarray:
    """Replace each corner by a quadratic Bezier curve that starts ``radius`` before it."""
    points = []
    t = np.linspace(0.0, 1.0, steps)[:, None]
    for previous, corner, following in zip(
        np.roll(polygon, 1, axis=0), polygon, np.roll(polygon, -1, axis=0), strict=True
    ):
        start = corner + radius * (previous - corner) / np.linalg.norm(previous - corner)
        stop = corner + radius * (following - corner) / np.linalg.norm(following - corner)
        points.append((1 - t) ** 2 * start + 2 * t * (1 - t) * corner + t**2 * stop)
    rounded = np.concatenate(points)
    # Rounding pulls the corners in; scenes count on the longer side being exactly one.
    low, high = rounded.min(axis=0), rounded.max(axis=0)
    return (rounded - (low + high) / 2) / (high - low).max()


def _arc(
    centre: tuple[float, float], radii: tuple[float, float], start_deg: float, stop_deg: float
) -> np.ndarray:
    angles = np.deg2rad(np.linspace(start_deg, stop_deg, 25))
    return np.stack(
        [centre[0] + radii[0] * np.cos(angles), centre[1] + radii[1] * np.sin(angles)], axis=1
    )


def _join(*pieces: np.ndarray | Sequence[tuple[float, float]]) -> np.ndarray:
    return np.concatenate([np.asarray(piece, dtype=float) for piece in pieces])


# Strokes of the characters, in a unit box with y downwards, as on road signs: one stroke width.
_STROKES: dict[str, tuple[np.ndarray, ...]] = {
    "S": (
        _join(
            _arc((0.5, 0.26), (0.44, 0.26), -25, -270), _arc((0.5, 0.76), (0.48, 0.24), -90, 155)
        ),
    ),
    "T": (_join([(0, 0), (1, 0)]), _join([(0.5, 0), (0.5, 1)])),
    "O": (_arc((0.5, 0.5), (0.5, 0.5), 0, 360),),
    "P": (
        _join([(0.06, 1), (0.06, 0), (0.5, 0)], _arc((0.52, 0.29), (0.44, 0.29), -90, 90)),
        _join([(0.52, 0.58), (0.06, 0.58)]),
    ),
    "Y": (_join([(0, 0), (0.5, 0.5), (1, 0)]), _join([(0.5, 0.5), (0.5, 1)])),
    "I": (_join([(0.5, 0), (0.5, 1)]),),
    "E": (_join([(0.95, 0), (0.05, 0), (0.05, 1), (0.95, 1)]), _join([(0.05, 0.5), (0.8, 0.5)])),
    "L": (_join([(0.05, 0), (0.05, 1), (0.95, 1)]),),
    "D": (
        _join(
            [(0.05, 1), (0.05, 0), (0.4, 0)],
            _arc((0.4, 0.5), (0.56, 0.5), -90, 90),
            [(0.05, 1)],
        ),
    ),
    "0": (_arc((0.5, 0.5), (0.44, 0.5), 0, 360),),
    "3": (
        _join(
            _arc((0.45, 0.25), (0.45, 0.25), -155, 90), _arc((0.45, 0.74), (0.5, 0.26), -90, 155)
        ),
    ),
    "5": (_join([(0.9, 0), (0.12, 0), (0.06, 0.46)], _arc((0.46, 0.68), (0.48, 0.32), -145, 145)),),
    "6": (
        _arc((0.5, 0.68), (0.46, 0.32), 0, 360),
        _arc((0.9, 0.68), (0.86, 0.68), 180, 262),
    ),
    "8": (_arc((0.5, 0.25), (0.4, 0.25), 0, 360), _arc((0.5, 0.75), (0.48, 0.25), 0, 360)),
}


class Canvas:
    """A square picture of one sign, drawn in sign coordinates at several times its final size.

    Args:
        size: side of the picture in pixels.
        margin: free space on each side, as a share of the side, for filters to reach into.
    """

    def __init__(self, size: int, margin: float) -> None:
        self._scale = size * (1.0 - 2.0 * margin)
        self._size = size
        self.pixels = np.zeros((size, size, 4), np.uint8)

    def _to_pixels(self, points: np.ndarray) -> np.ndarray:
        # 4 fractional bits; OpenCV's coordinates name pixel centres, ours pixel edges.
        pixels = np.asarray(points, dtype=float) * self._scale + self._size / 2 - 0.5
        return np.round(pixels * 16).astype(np.int32).reshape(-1, 1, 2)

    def fill(self, polygon: np.ndarray, colour: Colour) -> None:
        """Fill ``polygon`` (float array of shape (N, 2), sign coordinates)."""
        cv2.fillPoly(
            self.pixels, [self._to_pixels(polygon)], (*colour, 255), lineType=cv2.LINE_AA, shift=4
        )

    def stroke(self, path: np.ndarray, width: float, colour: Colour) -> None:
        """Draw ``path`` (float array of shape (N, 2)) with round ends, ``width`` in sign units."""
        cv2.polylines(
            self.pixels,
            [self._to_pixels(path)],
            False,
            (*colour, 255),
            thickness=max(1, round(width * self._scale)),
            lineType=cv2.LINE_AA,
            shift=4,
        )

    def disc(self, centre: tuple[float, float], radius: float, colour: Colour) -> None:
        """Fill a disc; centre and radius in sign units."""
        self.fill(_arc(centre, (radius, radius), 0, 360), colour)

    def text(
        self,
        text: str,
        box: tuple[float, float, float, float],
        width: float,
        colour: Colour,
        spacing: float = 0.3,
    ) -> None:
        """Write ``text`` into ``box`` (x0, y0, x1, y1, sign units; the strokes' centre lines).

        Args:
            width: stroke width in sign units.
            spacing: gap between two characters, as a share of a character's width.
        """
        x0, y0, x1, y1 = box
        character = (x1 - x0) / (len(text) + spacing * (len(text) - 1))
        for position, letter in enumerate(text):
            left = x0 + position * character * (1 + spacing)
            for path in _STROKES[letter]:
                self.stroke(path * (character, y1 - y0) + (left, y0), width, colour)


def _scaled(polygon: np.ndarray, factor: float, about: tuple[float, float] = (0, 0)) -> np.ndarray:
    return (polygon - about) * factor + about


def _draw_stop(canvas: Canvas, outline: np.ndarray, variant: int) -> None:
    canvas.fill(outline, OFF_WHITE)
    canvas.fill(_scaled(outline, 0.93), (RED, (150, 16, 30))[variant])
    canvas.text("STOP", (-0.35, -0.13, 0.35, 0.13), 0.055, OFF_WHITE, spacing=0.42)


def _draw_yield(canvas: Canvas, outline: np.ndarray, variant: int) -> None:
    centroid = (0.0, float(outline[:, 1].min()) / 3)
    canvas.fill(outline, RED)
    canvas.fill(_scaled(outline, 0.70, centroid), (AMBER, YELLOW)[variant])
    canvas.text("YIELD", (-0.2, -0.225, 0.2, -0.09), 0.032, BLACK, spacing=0.62)
    canvas.fill(np.array([(-0.1, 0.0), (0.1, 0.0), (0.0, 0.17)]), RED)


def _draw_speed_limit(canvas: Canvas, outline: np.ndarray, variant: int) -> None:
    number, lit = ("30", "50", "60", "80")[variant % 4], variant >= 4
    canvas.fill(outline, RED)
    canvas.fill(_scaled(outline, 0.76), CHARCOAL if lit else YELLOW)
    canvas.text(number, (-0.23, -0.17, 0.23, 0.17), 0.075, AMBER if lit else BLACK, spacing=0.5)


def _draw_priority(canvas: Canvas, outline: np.ndarray, variant: int) -> None:
    canvas.fill(outline, BLACK)
    canvas.fill(_scaled(outline, 0.94), OFF_WHITE)
    canvas.fill(_scaled(outline, 0.70), BLACK)
    canvas.fill(_scaled(outline, 0.64), (AMBER, (236, 156, 16))[variant])


def _draw_parking(canvas: Canvas, outline: np.ndarray, variant: int) -> None:
    ground = (BLUE, GREEN, (24, 52, 120))[variant]
    canvas.fill(outline, OFF_WHITE)
    canvas.fill(_scaled(outline, 0.92), ground)
    # The bowl is wide so that the sign's centre shows the ground, not the letter.
    canvas.text("P", (-0.24, -0.30, 0.26, 0.36), 0.105, OFF_WHITE)


def _draw_pedestrian(canvas: Canvas, outline: np.ndarray, variant: int) -> None:
    ground = (LIME, YELLOW)[variant]
    canvas.fill(outline, BLACK)
    canvas.fill(_scaled(outline, 0.95, (0, 0.03)), ground)
    canvas.disc((0.02, -0.25), 0.075, BLACK)
    canvas.stroke(np.array([(0.0, -0.1), (-0.01, 0.1)]), 0.13, BLACK)
    canvas.stroke(np.array([(-0.01, 0.1), (0.1, 0.22), (0.14, 0.38)]), 0.075, BLACK)
    canvas.stroke(np.array([(-0.03, 0.1), (-0.07, 0.24), (-0.18, 0.37)]), 0.075, BLACK)
    canvas.stroke(np.array([(0.02, -0.12), (0.13, 0.02), (0.23, 0.03)]), 0.055, BLACK)
    canvas.stroke(np.array([(-0.03, -0.12), (-0.14, -0.03), (-0.18, 0.1)]), 0.055, BLACK)


def _draw_warning(canvas: Canvas, outline: np.ndarray, variant: int) -> None:
    centroid = (0.0, float(outline[:, 1].max()) / 3)
    canvas.fill(outline, RED)
    canvas.fill(_scaled(outline, 0.70, centroid), (YELLOW, AMBER)[variant])
    canvas.fill(
        _rounded_bar([(-0.052, -0.15), (0.052, -0.15), (0.034, 0.13), (-0.034, 0.13)]), BLACK
    )
    canvas.disc((0.0, 0.225), 0.052, BLACK)


def _rounded_bar(corners: list[tuple[float, float]]) -> np.ndarray:
    bar = np.array(corners)
    top = _arc((0.0, float(bar[0, 1])), (abs(float(bar[0, 0])), 0.04), 180, 360)
    return np.concatenate([top, bar[2:]])


@dataclass(frozen=True)
class SignClass:
    """One class of sign.

    Attributes:
        name: class name in the annotations.
        outline: float array of shape (N, 2), the outline polygon in sign coordinates.
        variants: number of pictures that differ in colour or number but mean the same class.
        draw: paints the sign on a canvas, given the outline and the variant's index.
    """

    name: str
    outline: np.ndarray
    variants: int
    draw: Callable[[Canvas, np.ndarray, int], None]


def _triangle(apex_deg: float) -> np.ndarray:
    return _rounded(_regular(3, apex_deg, 1.0), 0.16)


SIGN_CLASSES: tuple[SignClass, ...] = (
    SignClass("stop", _rounded(_regular(8, 22.5, 0.54), 0.02, steps=2), 2, _draw_stop),
    SignClass("yield", _triangle(90), 2, _draw_yield),
    SignClass("speed_limit", _regular(40, 0, 0.5), 8, _draw_speed_limit),
    SignClass("priority", _rounded(_regular(4, 0, 0.5), 0.06), 2, _draw_priority),
    SignClass("parking", _rounded(_regular(4, 45, 0.5), 0.07, steps=6), 3, _draw_parking),
    SignClass(
        "pedestrian",
        _rounded(
            np.array([(0.0, -0.5), (0.47, -0.06), (0.47, 0.5), (-0.47, 0.5), (-0.47, -0.06)]), 0.05
        ),
        2,
        _draw_pedestrian,
    ),
    SignClass("warning", _triangle(-90), 2, _draw_warning),
)
"""The classes, in the order of their contiguous ids."""

CLASS_NAMES: tuple[str, ...] = tuple(sign.name for sign in SIGN_CLASSES)

TEMPLATE_MARGIN = 1 / 16
"""Free border of a template on each side, as a share of its side."""


@cache
def template(class_index: int, variant: int, size: int) -> np.ndarray:
    """The flat, anti-aliased picture of a sign.

    Args:
        class_index: index into :data:`SIGN_CLASSES`.
        variant: 0 .. ``SIGN_CLASSES[class_index].variants`` - 1.
        size: side in pixels, one of :data:`TEMPLATE_SIZES`.

    Returns:
        Read-only uint8 array of shape (size, size, 4): red, green, blue, alpha, with the colours
        multiplied by alpha. Sign coordinates are mapped onto the square inside
        :data:`TEMPLATE_MARGIN`.
    """
    sign = SIGN_CLASSES[class_index]
    if size == TEMPLATE_SIZES[-1]:
        canvas = Canvas(size * _OVERSAMPLING, TEMPLATE_MARGIN)
        sign.draw(canvas, sign.outline, variant)
        large = canvas.pixels
    else:
        large = template(class_index, variant, TEMPLATE_SIZES[-1])
    picture = cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA)
    picture.setflags(write=False)
    return picture
