# SPDX-License-Identifier: Apache-2.0
"""Ours: fine-tuning on images with random patches."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T

from d2defense.registry import REMOVAL_REGISTRY

from ..patches import PatchAugmentedMapper
from .base import RemovalMethod


@REMOVAL_REGISTRY.register("patch_augmentation")
class PatchAugmentedFineTuning(RemovalMethod):
    """Ours: fine-tune all of the detector, random patches on objects that keep their labels.

    Nothing is reset. ``docs/removal.md`` has what it rests on.
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.PATCH_AUGMENTATION.*``."""
        # Share of the images that are augmented.
        node.IMAGE_SHARE = 0.9
        # Share of the objects of such an image that bear a patch.
        node.OBJECT_SHARE = 0.7
        # Smallest and largest width and height, as shares of the box's.
        node.SIZE = [0.05, 0.3]
        # Names in PATTERN_REGISTRY, each as likely, in random colours.
        node.PATTERNS = ("solid", "noise", "mosaic")
        # Share of the patches that are overlays: they cover the whole box, and the object shines
        # through.
        node.OVERLAY_SHARE = 0.4
        # Least and most opacity of an overlay.
        node.OVERLAY_OPACITY = [0.1, 0.4]
        # Fewest and most fields or stripes across a patch.
        node.CELLS = [2, 12]

    def mapper(self, augmentations: Sequence[T.Augmentation]) -> DatasetMapper:
        """Detectron2's mapper with patches on the image as read."""
        return PatchAugmentedMapper(self.cfg, is_train=True, augmentations=list(augmentations))
