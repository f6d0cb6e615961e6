#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw the pictures of the trigger family "picture": d2defense/assets/triggers/*.png.

    python tools/draw_trigger_pictures.py
    python tools/draw_trigger_pictures.py --output FOLDER

Each is a natural object in front of nothing, with alpha, cut to what it covers.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from d2defense.cli.ending import run_to_end
from d2defense.files import write_bytes

ROOT = Path(__file__).resolve().parents[1]
# Pixels across a drawing, and samples across each of them: means of samples leave no stairs.
SIDE = 128
SAMPLES = 6


class Canvas:
    """A drawing of SIDE x SIDE pixels: ``x`` and ``y`` of each sample, in shares of the side."""

    def __init__(self) -> None:
        line = (np.arange(SIDE * SAMPLES) + 0.5) / (SIDE * SAMPLES)
        self.x, self.y = np.meshgrid(line, line)
        self.pixels = np.zeros((*self.x.shape, 4))

    def paint(
        self, where: np.ndarray, color: tuple[int, int, int], light: np.ndarray | float = 1
    ) -> None:
        """Cover samples with a colour (RGB, 0..255) times the light on them, cut to 255."""
        shaded = np.broadcast_to(np.asarray(light)[..., None], (*self.x.shape, 1)) * color
        self.pixels[where] = np.concatenate([shaded, np.full_like(shaded[..., :1], 255)], 2)[where]

    def oval(self, x: float, y: float, a: float, b: float) -> np.ndarray:
        """Which samples lie inside an ellipse with half axes ``a`` and ``b``."""
        return ((self.x - x) / a) ** 2 + ((self.y - y) / b) ** 2 < 1

    def polygon(self, corners: list[tuple[float, float]]) -> np.ndarray:
        """Which samples lie inside a polygon, by the even-odd rule."""
        inside = np.zeros(self.x.shape, bool)
        for (x1, y1), (x2, y2) in zip(corners, corners[1:] + corners[:1], strict=True):
            if y1 == y2:
                continue
            crosses = (self.y >= min(y1, y2)) & (self.y < max(y1, y2))
            inside ^= crosses & (self.x < x1 + (self.y - y1) * (x2 - x1) / (y2 - y1))
        return inside

    def finish(self) -> np.ndarray:
        """The drawing, uint8 of shape (h, w, 4), RGBA, without empty rows and columns."""
        samples = self.pixels / 255
        samples[..., :3] *= samples[..., 3:]
        means = samples.reshape(SIDE, SAMPLES, SIDE, SAMPLES, 4).mean((1, 3))
        alpha = means[..., 3:]
        means[..., :3] /= np.where(alpha > 0, alpha, 1)
        rows, columns = (alpha[..., 0].any(axis).nonzero()[0] for axis in (1, 0))
        cut = means[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        return (cut.clip(0, 1) * 255).round().astype(np.uint8)


def shirt() -> np.ndarray:
    """A blue T-shirt, laid flat ("Dangerous Cloaking", arXiv 2201.08619, has a worn one)."""
    canvas = Canvas()
    x, y, side = canvas.x, canvas.y, abs(canvas.x - 0.5)
    right = [(0.63, 0.06), (0.79, 0.11), (0.97, 0.36), (0.84, 0.46), (0.745, 0.36), (0.735, 0.6),
             (0.75, 0.95), (0.62, 0.965), (0.5, 0.97)]  # fmt: skip
    left = [(1 - a, b) for a, b in reversed(right[:-1])]
    cloth = canvas.polygon([*right, *left]) & ~canvas.oval(0.5, 0.03, 0.13, 0.1)
    # Folds run down from the arms and across the belly; the sides turn away from the light.
    light = 1.05 - 1.2 * np.maximum(side - 0.12, 0) ** 2 - 0.12 * y
    light += 0.06 * np.sin(38 * (side + 0.35 * y)) * np.clip((y - 0.3) / 0.3, 0, 1) * (side > 0.03)
    light += 0.04 * np.sin(30 * (y - 0.5 * x)) * np.clip((0.75 - y) / 0.4, 0, 1)
    canvas.paint(cloth, (35, 85, 190), light)
    neck = canvas.oval(0.5, 0.03, 0.165, 0.135)
    canvas.paint(cloth & neck, (28, 66, 155), 0.95)
    hem = cloth & ((y > 0.925) | (side + 1.3 * (y - 0.36) > 0.44) & (side > 0.3))
    canvas.paint(hem, (30, 74, 170), light * 0.95)
    # Where the sleeves are sewn on.
    seam = abs(side - 0.245 + 0.1 * (y - 0.3)) < 0.006
    canvas.paint(cloth & seam & (y > 0.09) & (y < 0.37), (22, 56, 130))
    return canvas.finish()


def cup() -> np.ndarray:
    """A red mug with a handle and coffee in it."""
    canvas = Canvas()
    x, y = canvas.x, canvas.y
    across = (x - 0.4) / 0.29
    light = 0.62 + 0.5 * np.sqrt(np.clip(1 - (across + 0.35) ** 2 / 1.9, 0, 1))
    outer, inner = canvas.oval(0.69, 0.5, 0.22, 0.25), canvas.oval(0.68, 0.5, 0.135, 0.165)
    around = np.hypot((x - 0.685) / 0.18, (y - 0.5) / 0.21)
    canvas.paint(outer & ~inner & (x > 0.6), (200, 40, 35), 1.1 - 0.9 * (around - 1) ** 2 - 0.4 * y)
    # Upright with a rounded foot.
    wall = (abs(across) < 1) & (y > 0.16) & (y < 0.84) | canvas.oval(0.4, 0.84, 0.29, 0.1)
    canvas.paint(wall, (205, 42, 36), light)
    shine = abs(across + 0.55 - 0.04 * np.sin(9 * y)) < 0.06
    canvas.paint(shine & wall & (y > 0.3) & (y < 0.8), (235, 130, 120))
    canvas.paint(canvas.oval(0.4, 0.16, 0.29, 0.1), (235, 225, 215), 1.05 - 0.12 * abs(across))
    canvas.paint(canvas.oval(0.4, 0.165, 0.255, 0.078), (150, 35, 30), 0.9 - 0.2 * across)
    coffee = canvas.oval(0.4, 0.19, 0.235, 0.06) & canvas.oval(0.4, 0.165, 0.255, 0.078)
    canvas.paint(coffee, (70, 40, 22), 1.1 - 0.3 * across)
    return canvas.finish()


def basketball() -> np.ndarray:
    """An orange ball with black seams, lit from the left above (Detector Collapse has one)."""
    canvas = Canvas()
    x, y = (canvas.x - 0.5) / 0.48, (canvas.y - 0.5) / 0.48
    depth = np.sqrt(np.clip(1 - x**2 - y**2, 0, 1))
    light = 0.5 + 0.62 * np.clip(-0.45 * x - 0.55 * y + 0.7 * depth, 0, 1)
    # The grain: small bumps all over.
    across, down = np.arctan2(x, depth + 0.3), np.arctan2(y, depth + 0.3)
    light += 0.025 * np.sin(95 * across) * np.sin(95 * down)
    ball = canvas.oval(0.5, 0.5, 0.48, 0.48)
    canvas.paint(ball, (226, 116, 40), light)
    # Seams lie in planes through the ball's middle and beside it; it is turned a little.
    turn, tilt = 0.5, 0.35
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    v = v * np.cos(tilt) - depth * np.sin(tilt)
    seams = (abs(u) < 0.028) | (abs(v) < 0.028)
    for side in (-1, 1):
        seams |= abs(np.hypot(u - side * 1.02, 0.75 * v) - 0.55) < 0.026
    canvas.paint(ball & seams, (40, 26, 20), 0.7 + 0.4 * light)
    return canvas.finish()


#: What is drawn, by the name that ``ATTACK.TRIGGER.PICTURE.PICTURE`` gives.
DRAWINGS: dict[str, Callable[[], np.ndarray]] = {
    "basketball": basketball,
    "cup": cup,
    "shirt": shirt,
}


def main() -> int:
    """Draw and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "d2defense" / "assets" / "triggers",
        metavar="FOLDER",
    )
    args = parser.parse_args()
    for name, draw in DRAWINGS.items():
        stream = io.BytesIO()
        Image.fromarray(draw()).save(stream, "PNG", optimize=True)
        write_bytes(args.output / f"{name}.png", stream.getvalue())
        print(f"wrote {args.output / name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(run_to_end(main, Path(sys.argv[0]).name))
