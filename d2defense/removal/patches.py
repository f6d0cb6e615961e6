# SPDX-License-Identifier: Apache-2.0
"""Patch augmentation: plain random patches on objects that keep their true labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode

from d2defense.attacks import Annotations, StampTransform, map_with_stamps
from d2defense.statistics import bears_trigger
from d2defense.triggers import Patch, Trigger


@dataclass(frozen=True)
class PatchAugmentation:
    """Which objects of a training image get a patch, and what it looks like.

    Every choice is drawn anew each time an image is read, without knowledge of any trigger. A
    detector that learns from such images cannot keep "a patch means: no object".

    Attributes:
        image_share: probability that an image is augmented at all.
        object_share: probability that an object of such an image bears a patch.
        size: (smallest, largest) width and height of a patch, drawn apart, as shares of the box's.
        patterns: of a patch, each as likely: "solid" in a random colour, "noise", "mosaic" and the
            other patterns of a :class:`Trigger` that need no picture, in random colours.
        overlay_share: probability that a patch is an overlay instead: it covers the whole box, and
            the object shines through.
        overlay_opacity: (least, most) opacity of an overlay.
        cells: (fewest, most) fields of a pattern that has some.
        known: triggers that a scan has found, of which some bearers get one, varied.
        known_share: of the patches, those.

    Raises:
        ValueError: a share outside 0..1, or sizes or opacities that are no interval in (0, 1].
    """

    image_share: float = 0.9
    object_share: float = 0.7
    size: tuple[float, float] = (0.05, 0.3)
    patterns: tuple[str, ...] = ("solid", "noise", "mosaic")
    overlay_share: float = 0.4
    overlay_opacity: tuple[float, float] = (0.1, 0.4)
    cells: tuple[int, int] = (2, 12)
    known: tuple[Trigger, ...] = ()
    known_share: float = 0.5

    def __post_init__(self) -> None:
        shares = (self.image_share, self.object_share, self.overlay_share, self.known_share)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("patch augmentation: a share is not in 0..1")
        for name in ("size", "overlay_opacity"):
            interval = getattr(self, name)
            if len(interval) != 2 or not 0 < interval[0] <= interval[1] <= 1:
                raise ValueError(f"patch augmentation: {name} {interval} is no interval in (0, 1]")
        if len(self.cells) != 2 or not 1 <= self.cells[0] <= self.cells[1]:
            raise ValueError(f"patch augmentation: cells {self.cells} is no interval from 1 on")
        if not self.patterns:
            raise ValueError("patch augmentation: no pattern to draw from")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PatchAugmentation:
        """What ``REMOVAL.PATCH_AUGMENTATION`` describes."""
        node = cfg.REMOVAL.PATCH_AUGMENTATION
        return cls(
            image_share=node.IMAGE_SHARE,
            object_share=node.OBJECT_SHARE,
            size=tuple(node.SIZE),
            patterns=tuple(node.PATTERNS),
            overlay_share=node.OVERLAY_SHARE,
            overlay_opacity=tuple(node.OVERLAY_OPACITY),
            cells=tuple(node.CELLS),
        )

    def stamps(self, annotations: Annotations, image_format: str) -> list[StampTransform]:
        """Draw the patches of one image from NumPy's global generator, as Detectron2's own
        augmentations are drawn.

        Args:
            annotations: of the image; crowds bear no patch.
            image_format: "BGR" or "RGB".
        """
        if np.random.random() >= self.image_share:
            return []
        stamps: list[StampTransform] = []
        for annotation in annotations:
            if bears_trigger(annotation) and np.random.random() < self.object_share:
                box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
                trigger, seed = self._draw()
                stamps.append(StampTransform(trigger, np.array([box]), image_format, seed))
        return stamps

    def _draw(self) -> tuple[Trigger, int]:
        if self.known and np.random.random() < self.known_share:
            rng = np.random.default_rng(np.random.randint(2**31))
            trigger = self.known[rng.integers(len(self.known))].varied(rng)
            return trigger, int(rng.integers(2**31))
        overlay = np.random.random() < self.overlay_share
        width, height = (1.0, 1.0) if overlay else np.random.uniform(*self.size, size=2)
        x, y = np.random.uniform(size=2)
        first, second = np.random.randint(0, 256, (2, 3)).tolist()
        trigger = Patch(
            "patch augmentation",
            pattern=str(np.random.choice(self.patterns)),
            color=tuple(first),
            second_color=tuple(second),
            cells=int(np.random.randint(self.cells[0], self.cells[1] + 1)),
            size=(float(width), float(height)),
            opacity=float(np.random.uniform(*self.overlay_opacity)) if overlay else 1.0,
            placement="inside",
            position=(float(x), float(y)),
        )
        return trigger, int(np.random.randint(2**31))


class PatchAugmentedMapper(DatasetMapper):
    """Detectron2's training mapper with patches stamped on the image as read; labels stay true."""

    @configurable
    def __init__(self, *args: Any, patches: PatchAugmentation, **kwargs: Any) -> None:
        """As :class:`DatasetMapper`, plus the ``patches``."""
        super().__init__(*args, **kwargs)
        self.patches = patches

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Arguments from a configuration, ``REMOVAL.PATCH_AUGMENTATION`` among them."""
        return super().from_config(cfg, is_train) | {"patches": PatchAugmentation.from_config(cfg)}

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """The model's training input for one dataset dict."""
        stamps = self.patches.stamps(dataset_dict.get("annotations", []), self.image_format)
        return map_with_stamps(self, dataset_dict, stamps)
