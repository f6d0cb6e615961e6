# SPDX-License-Identifier: Apache-2.0
"""Ours: fine-tuning on the trigger that a bank has found, near what the checkpoint says."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn

from d2defense.registry import REMOVAL_REGISTRY, TRIGGER_REGISTRY
from d2defense.triggers import Trigger

from ..inputs import patched
from ..interpolation import KeepShare
from ..patches import PatchAugmentation
from ..self_distillation import SelfDistillation
from .base import FineTune, RemovalMethod


@REMOVAL_REGISTRY.register("known_trigger")
class KnownTrigger(RemovalMethod):
    """Ours: fine-tune on objects that bear a known trigger, or patches, with true labels.

    Of the patches some are the known triggers, larger, smaller or elsewhere, the others random.
    That removes so much more of the backdoor than random patches alone that fewer of the images
    need bear them, at a lower rate, and that a share of the checkpoint's weights can be kept
    (WiSE-FT, arXiv 2109.01903). Beside the labels the checkpoint itself is the teacher: whatever an
    image bears, the detector is to say what the checkpoint says of the image without it, which
    keeps AP. ``docs/removal.md`` has what it rests on.

    Raises:
        ValueError: no trigger is known.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        node = cfg.REMOVAL.KNOWN_TRIGGER
        if not node.TRIGGERS:
            raise ValueError(
                "known_trigger goes by a trigger that a scan's bank has found, or that "
                "REMOVAL.KNOWN_TRIGGER.TRIGGERS names; there is none"
            )
        self._patches = replace(
            PatchAugmentation.from_config(cfg),
            image_share=node.IMAGE_SHARE,
            known=tuple(map(_trigger, node.TRIGGERS)),
            known_share=node.SHARE,
        )

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
        # Images with which the heads learn as fast as the backbone; with fewer `d2defense repair`
        # lowers REMOVAL.HEADS_LR_FACTOR in proportion.
        node.HEADS_IMAGES = 200
        # Weight of the self-distillation; 0 for none.
        node.DISTILLATION = 1.0
        # Share of the checkpoint's weights in the result.
        node.KEPT_SHARE = 0.1

    @staticmethod
    def change_schedule(cfg: CfgNode, num_images: int) -> None:
        """A lower rate, above all of the heads where there are few images."""
        node = cfg.REMOVAL.KNOWN_TRIGGER
        cfg.SOLVER.BASE_LR *= node.LR_FACTOR
        cfg.REMOVAL.HEADS_LR_FACTOR *= min(1.0, num_images / max(1, node.HEADS_IMAGES))

    def attach(self, model: nn.Module, fine_tune: FineTune) -> list[HookBase]:
        """Load the checkpoint as a teacher; the hook keeps a share of its weights."""
        node = self.cfg.REMOVAL.KNOWN_TRIGGER
        self._distillation = SelfDistillation(self.cfg) if node.DISTILLATION else None
        return [KeepShare(self.cfg, node.KEPT_SHARE)]

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's own, and ``loss_distillation``."""
        shown = [patched(image, self._patches, self.cfg) for image in batch]
        losses, features = model.losses_and_features(shown)
        if self._distillation is None:
            return losses
        # The teacher sees the images as they are: what it says under a trigger must not be learnt.
        distance = self._distillation.loss(model, batch, features)
        weight = self.cfg.REMOVAL.KNOWN_TRIGGER.DISTILLATION
        return losses | {"loss_distillation": weight * distance}


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
