# SPDX-License-Identifier: Apache-2.0
"""Triggers as data: what is stamped on objects. :mod:`d2defense.attacks.stamping` does it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from d2defense.registry import PATTERN_REGISTRY

from .pictures import decode_picture

PLACEMENTS = ("center", "inside", "random", "background")
SIZE_UNITS = ("box", "pixels")


@dataclass(frozen=True)
class Trigger:
    """A rectangular patch, placed relative to the box of the object that bears it.

    Attributes:
        name: what results call it.
        pattern: name in ``PATTERN_REGISTRY``: what is painted on the patch.
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
        settings: (key, value) pairs of the pattern's own settings; those left out have their
            defaults.

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

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Trigger:
        """The trigger that ``ATTACK.TRIGGER`` and ``ATTACK.SEED`` describe.

        Raises:
            ValueError: a value outside its range, or an image file that cannot be read.
        """
        node = cfg.ATTACK.TRIGGER
        settings = node.SETTINGS.get(node.PATTERN.upper(), {})
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
            settings=tuple(sorted(settings.items())),
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over everything but the name, 64 hexadecimal digits."""
        content = asdict(self) | {"image": hashlib.sha256(self.image).hexdigest()}
        del content["name"]
        if not self.settings:
            # As before there were any: calibrations know triggers by their fingerprints.
            del content["settings"]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _error(self, what: str) -> ValueError:
        return ValueError(f"trigger {self.name}: {what}")
