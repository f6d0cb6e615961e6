# SPDX-License-Identifier: Apache-2.0
"""Ours: fine-tuning on the trigger that a bank has found, and a share of the checkpoint kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from torch import nn

from d2defense.registry import REMOVAL_REGISTRY, TRIGGER_REGISTRY
from d2defense.triggers import Trigger

from ..interpolation import KeepShare
from ..patches import PatchAugmentation, PatchAugmentedMapper
from .base import FineTune, RemovalMethod


@REMOVAL_REGISTRY.register("known_trigger")
class KnownTrigger(RemovalMethod):
    """Ours: fine-tune on objects that bear a known trigger, or patches, with true labels.

    Of the patches some are the known triggers, larger, smaller or elsewhere, the others random.
    That removes so much more of the backdoor than random patches alone that fewer images, a lower
    rate and a share of the checkpoint's weights (WiSE-FT, arXiv 2109.01903) leave little of it, and
    cost less on clean images. ``docs/removal.md`` has what it rests on.

    Raises:
        ValueError: no trigger is known.
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.KNOWN_TRIGGER.*``."""
        # Entries of a trigger bank in JSON, as '{"family": "patch", "name": "white", "color":
        # [255, 255, 255]}'. A repair puts those here by which a scan's bank has found it.
        node.TRIGGERS = ()
        # Of the patches, those. The others are as REMOVAL.PATCH_AUGMENTATION has them.
        node.SHARE = 0.7
        # Share of the images that bear patches.
        node.IMAGE_SHARE = 0.3
        # Learning rate of `d2defense repair`, as a share of REMOVAL.SOLVER.BASE_LR.
        node.LR_FACTOR = 0.5
        # Share of the checkpoint's weights in the result.
        node.KEPT_SHARE = 0.1

    @staticmethod
    def change_schedule(cfg: CfgNode) -> None:
        """A lower rate."""
        cfg.SOLVER.BASE_LR *= cfg.REMOVAL.KNOWN_TRIGGER.LR_FACTOR

    def attach(self, model: nn.Module, fine_tune: FineTune) -> list[HookBase]:
        """A hook that keeps a share of the checkpoint's weights."""
        return [KeepShare(self.cfg, self.cfg.REMOVAL.KNOWN_TRIGGER.KEPT_SHARE)]

    def mapper(self, augmentations: Sequence[T.Augmentation]) -> DatasetMapper:
        """Detectron2's mapper with patches on the image as read."""
        node = self.cfg.REMOVAL.KNOWN_TRIGGER
        if not node.TRIGGERS:
            raise ValueError(
                "known_trigger goes by a trigger that a scan's bank has found, or that "
                "REMOVAL.KNOWN_TRIGGER.TRIGGERS names; there is none"
            )
        patches = replace(
            PatchAugmentation.from_config(self.cfg),
            image_share=node.IMAGE_SHARE,
            known=tuple(map(_trigger, node.TRIGGERS)),
            known_share=node.SHARE,
        )
        return PatchAugmentedMapper(
            self.cfg, is_train=True, augmentations=list(augmentations), patches=patches
        )


def _trigger(entry: str) -> Trigger:
    """The trigger of an entry in JSON, as :meth:`Trigger.to_entry` has it, without a file.

    Raises:
        ValueError: it is none.
    """
    try:
        values = json.loads(entry)
        return TRIGGER_REGISTRY.get(values.pop("family")).from_entry(values, Path())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"REMOVAL.KNOWN_TRIGGER.TRIGGERS: {entry!r}: {error}") from None
