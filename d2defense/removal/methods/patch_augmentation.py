# SPDX-License-Identifier: Apache-2.0
"""Ours: fine-tuning on images with random patches."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from torch import nn

from d2defense.registry import REMOVAL_REGISTRY

from ..interpolation import KeepShare
from ..patches import PatchAugmentedMapper
from .base import FineTune, RemovalMethod


@REMOVAL_REGISTRY.register("patch_augmentation")
class PatchAugmentedFineTuning(RemovalMethod):
    """Ours: fine-tune all of the detector, random patches on objects that keep their labels.

    Nothing is reset. A share of the checkpoint's weights may be kept, which costs less on clean
    images, and removes less. ``docs/removal.md`` has what it rests on.
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
        # Share of the checkpoint's weights in the result; the rest is what fine-tuning has made of
        # them (WiSE-FT, arXiv 2109.01903). 0 for none. Only where this is the removal method.
        node.KEPT_SHARE = 0.0

    def attach(self, model: nn.Module, fine_tune: FineTune) -> list[HookBase]:
        """A hook that keeps a share of the checkpoint's weights."""
        return [KeepShare(self.cfg, self.cfg.REMOVAL.PATCH_AUGMENTATION.KEPT_SHARE)]

    def mapper(self, augmentations: Sequence[T.Augmentation]) -> DatasetMapper:
        """Detectron2's mapper with patches on the image as read."""
        return PatchAugmentedMapper(self.cfg, is_train=True, augmentations=list(augmentations))
