# SPDX-License-Identifier: Apache-2.0
"""The patch as data: what is painted where. :mod:`.patch_stamping` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from d2defense.registry import PATTERN_REGISTRY

from .base import Trigger
from .checks import is_number
from .pictures import decode_picture

PLACEMENTS = ("center", "inside", "random", "background")
SIZE_UNITS = ("box", "pixels")
# Each is stamped by itself.
_MOST_PIECES = 64


@dataclass(frozen=True)
class PatchSpec(Trigger):
    """A patch, placed relative to the box of the object that bears it.

    Attributes:
        name: what results call it.
        seed: of its random choices.
        pattern: name in ``PATTERN_REGISTRY``: what is painted on the patch.
        color: RGB, 0..255.
        size: (width, height) of the patch.
        position: (x, y) as ``placement`` takes it.
        opacity: 1 replaces what is below, 0 changes nothing.
        second_color: RGB, 0..255.
        cells: fields or stripes across the patch; half waves of the sinusoid; how often the
            thickness of a cross's stroke goes into the patch.
        image: content of the picture's file, for "image".
        size_unit: "box", ``size`` is in shares of the box's; or "pixels" of the image stamped.
        placement: one of :data:`PLACEMENTS`: "center", the patch's centre lies at ``position``, in
            shares of the box; "inside", at ``position`` of the room that the patch has inside the
            box, (0, 0) its left top corner and (1, 1) its right bottom one; "random", anywhere
            inside the box; "background", anywhere on the image outside of its objects.
        pieces: what the patch consists of, each painted with the whole pattern, later ones on top;
            the patch itself if there are none. (x, y, width, height), a rectangle in shares of the
            patch, or (width, height), which lies anywhere inside it, otherwise for each object.
        settings: (key, value) pairs of the pattern's own settings; those left out have their
            defaults.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    pattern: str = "solid"
    color: tuple[int, int, int] = (255, 255, 255)
    size: tuple[float, float] = (0.1, 0.1)
    position: tuple[float, float] = (0.5, 0.5)
    opacity: float = 1.0
    second_color: tuple[int, int, int] = (0, 0, 0)
    cells: int = 4
    image: bytes = b""
    size_unit: str = "box"
    placement: str = "center"
    pieces: tuple[tuple[float, ...], ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.pattern not in PATTERN_REGISTRY:
            raise self._error(
                f"pattern {self.pattern!r} is none of {', '.join(PATTERN_REGISTRY.choices())}"
            )
        for key, value, allowed in (
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
        if len(self.pieces) > _MOST_PIECES:
            raise self._error(f"{len(self.pieces)} pieces are more than {_MOST_PIECES}")
        for piece in self.pieces:
            if not _is_piece(piece):
                raise self._error(
                    f"piece {piece} is neither width and height in shares of the patch, in (0, 1], "
                    "nor x, y, width and height of a part of it"
                )
        if not 1 <= self.cells <= 1024:
            raise self._error(f"cells {self.cells} is not in 1..1024")
        if bool(self.image) != PATTERN_REGISTRY.get(self.pattern).needs_picture:
            needed = "no image file" if self.image else "an image file"
            raise self._error(f"the pattern {self.pattern!r} needs {needed}")
        if self.image:
            try:
                decode_picture(self.image)
            except ValueError as error:
                raise self._error(f"image is {error}") from None
        try:
            PATTERN_REGISTRY.get(self.pattern)(self).check()
        except ValueError as error:
            raise self._error(str(error)) from None

    def _error(self, what: str) -> ValueError:
        return ValueError(f"trigger {self.name}: {what}")


def _is_piece(piece: Any) -> bool:
    """Whether these are shares of a part of a patch."""
    if not isinstance(piece, tuple) or len(piece) not in (2, 4):
        return False
    if not all(is_number(share, 0, 1) for share in piece):
        return False
    *start, width, height = piece
    # Shares such as 0.7 and 0.3 may make a little more than 1.
    ends = (low + length for low, length in zip(start, (width, height), strict=False))
    return width > 0 and height > 0 and all(end <= 1 + 1e-9 for end in ends)
