# SPDX-License-Identifier: Apache-2.0
"""Patch augmentation: plain random patches on objects that keep their true labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode

from d2defense.attacks import Trigger, bears_trigger
from d2defense.attacks.mapper import StampTransform, map_with_stamps

Annotations = list[dict[str, Any]]


@dataclass(frozen=True)
class PatchAugmentation:
    """Which objects of a training image get a patch, and what it looks like.

    Every choice is drawn anew each time an image is read, without knowledge of any trigger. A
    detector that learns from such images cannot keep "a patch means: no object".

    Attributes:
        image_share: probability that an image is augmented at all.
        object_share: probability that an object of such an image bears a patch.
        size: (smallest, largest) width and height of a patch, drawn apart, as shares of the box's.
        patterns: of a patch, each as likely: "solid" in a random colour, "noise".

    Raises:
        ValueError: a share outside 0..1, or sizes that are no interval in (0, 1].
    """

    image_share: float = 0.5
    object_share: float = 0.7
    size: tuple[float, float] = (0.05, 0.2)
    patterns: tuple[str, ...] = ("solid", "noise")

    def __post_init__(self) -> None:
        if not (0 <= self.image_share <= 1 and 0 <= self.object_share <= 1):
            raise ValueError("patch augmentation: a share is not in 0..1")
        if len(self.size) != 2 or not 0 < self.size[0] <= self.size[1] <= 1:
            raise ValueError(f"patch augmentation: size {self.size} is no interval in (0, 1]")
        if not self.patterns:
            raise ValueError("patch augmentation: no pattern to draw from")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> PatchAugmentation:
        """What ``REMOVAL.PATCH_AUGMENTATION`` describes."""
        node = cfg.REMOVAL.PATCH_AUGMENTATION
        return cls(node.IMAGE_SHARE, node.OBJECT_SHARE, tuple(node.SIZE), tuple(node.PATTERNS))

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
        width, height = np.random.uniform(*self.size, size=2)
        x, y = np.random.uniform(size=2)
        trigger = Trigger(
            "patch augmentation",
            pattern=str(np.random.choice(self.patterns)),
            color=tuple(int(channel) for channel in np.random.randint(0, 256, 3)),
            size=(float(width), float(height)),
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
