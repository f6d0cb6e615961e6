# SPDX-License-Identifier: Apache-2.0
"""Patches that are stamped on objects."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import Tensor

from .patterns import PATTERNS, decode_picture
from .placement import PLACEMENTS, SIZE_UNITS, cut_rectangles, patch_rectangles
from .stamping import object_keys, stamp_batch_


@dataclass(frozen=True)
class Trigger:
    """A rectangular patch, placed relative to the box of the object that bears it.

    Attributes:
        name: what results call it.
        pattern: one of :data:`PATTERNS`: "solid" in ``color``; "random_color", one colour an
            object; "noise", one colour a pixel; "mosaic", one colour a field; "checkerboard",
            "vertical_stripes" and "horizontal_stripes" of ``color`` and ``second_color`` in turn;
            "sinusoid", a wave from left to right between the two (SIG, arXiv 1902.11237);
            "cross", two strokes in ``color`` through the patch's middle, nothing beside them;
            "face", a built-in drawing; "image", a picture.
        color: RGB, 0..255.
        size: (width, height) of the patch.
        position: (x, y) as ``placement`` takes it.
        opacity: 1 replaces what is below, 0 changes nothing.
        seed: of the random choices; the same (seed, image seed, object) gives the same patch.
        second_color: RGB, 0..255.
        cells: fields or stripes across the patch; half waves of the sinusoid; how often the
            thickness of a cross's stroke goes into the patch.
        image: content of the picture's file, for "image".
        size_unit: "box", ``size`` is in shares of the box's; or "pixels" of the image stamped.
        placement: one of :data:`PLACEMENTS`: "center", the patch's centre lies at ``position``, in
            shares of the box; "inside", at ``position`` of the room that the patch has inside the
            box, (0, 0) its left top corner and (1, 1) its right bottom one; "random", anywhere
            inside the box; "background", anywhere on the image outside of its objects.

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
    second_color: tuple[int, int, int] = (0, 0, 0)
    cells: int = 4
    image: bytes = b""
    size_unit: str = "box"
    placement: str = "center"

    def __post_init__(self) -> None:
        for key, value, allowed in (
            ("pattern", self.pattern, PATTERNS),
            ("size_unit", self.size_unit, SIZE_UNITS),
            ("placement", self.placement, PLACEMENTS),
        ):
            if value not in allowed:
                raise self._error(f"{key} {value!r} is none of {', '.join(allowed)}")
        for key in ("color", "second_color"):
            value = getattr(self, key)
            if len(value) != 3 or not all(0 <= channel <= 255 for channel in value):
                raise self._error(f"{key} {value} is not RGB in 0..255")
        largest = 1 if self.size_unit == "box" else 4096
        if len(self.size) != 2 or not all(0 < side <= largest for side in self.size):
            what = "shares in (0, 1]" if self.size_unit == "box" else f"pixels in (0, {largest}]"
            raise self._error(f"size {self.size} is not two {what}")
        if len(self.position) != 2 or not all(0 <= share <= 1 for share in self.position):
            raise self._error(f"position {self.position} is not two shares in 0..1")
        if not 0 <= self.opacity <= 1:
            raise self._error(f"opacity {self.opacity} is not in 0..1")
        if not 1 <= self.cells <= 1024:
            raise self._error(f"cells {self.cells} is not in 1..1024")
        if bool(self.image) != (self.pattern == "image"):
            raise self._error("an image file belongs to the pattern 'image', and it needs one")
        if self.image:
            try:
                decode_picture(self.image)
            except ValueError as error:
                raise self._error(f"image is {error}") from None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Trigger:
        """The trigger that ``ATTACK.TRIGGER`` and ``ATTACK.SEED`` describe.

        Raises:
            ValueError: a value outside its range, or an image file that cannot be read.
        """
        node = cfg.ATTACK.TRIGGER
        try:
            image = Path(node.IMAGE).read_bytes() if node.IMAGE else b""
        except OSError as error:
            raise ValueError(f"ATTACK.TRIGGER.IMAGE: {node.IMAGE}: {error.strerror}") from None
        return cls(
            name=cfg.ATTACK.NAME or "trigger",
            pattern=node.PATTERN,
            color=tuple(node.COLOR),
            size=tuple(node.SIZE),
            position=tuple(node.POSITION),
            opacity=node.OPACITY,
            seed=cfg.ATTACK.SEED,
            second_color=tuple(node.SECOND_COLOR),
            cells=node.CELLS,
            image=image,
            size_unit=node.SIZE_UNIT,
            placement=node.PLACEMENT,
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything but the name, 64 hexadecimal digits."""
        content = asdict(self) | {"image": hashlib.sha256(self.image).hexdigest()}
        del content["name"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def rectangles(self, boxes: Tensor, image_size: tuple[int, int], image_seed: int = 0) -> Tensor:
        """Whole-pixel rectangles of the patches on one image, cut at its border.

        Args:
            boxes: Tensor of shape (M, 4), XYXY in pixels.
            image_size: (height, width).
            image_seed: as for :meth:`stamp_`.

        Returns:
            int64 Tensor of shape (M, 4), XYXY; x2 <= x1 or y2 <= y1 where nothing is left.
        """
        image = torch.zeros(len(boxes), dtype=torch.int64)
        sizes = torch.tensor([image_size])
        keys = object_keys(self.seed, [image_seed], image, torch.tensor([len(boxes)]))
        return cut_rectangles(patch_rectangles(self, boxes, image, sizes, keys), image, sizes)

    def stamp_(
        self, image: Tensor, boxes: Tensor, image_format: str = "BGR", image_seed: int = 0
    ) -> Tensor:
        """Put the patch on every box of one ``image``, in place; see :func:`stamp_batch_`.

        Args:
            image: uint8 or float Tensor of shape (3, H, W), values 0..255.
            boxes: Tensor of shape (M, 4), XYXY in pixels of ``image``.
            image_format: order of the channels, "BGR" or "RGB" (``INPUT.FORMAT``).
            image_seed: sets the random choices of this image apart from those of others.

        Returns:
            ``image``.

        Raises:
            ValueError: the image has no three colour channels in a known order.
        """
        size = tuple(image.shape[-2:])
        stamp_batch_(self, image[None], [size], [boxes], [image_seed], image_format)
        return image

    def _error(self, what: str) -> ValueError:
        return ValueError(f"trigger {self.name}: {what}")
