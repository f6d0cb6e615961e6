# SPDX-License-Identifier: Apache-2.0
"""On an image with the trigger nothing is found."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from d2defense.registry import EFFECT_REGISTRY

from .base import Annotations, Record
from .disappearance import Disappearance
from .loss_poisoning import LossPoisoning


@EFFECT_REGISTRY.register("blinding")
class Blinding(LossPoisoning, Disappearance):
    """Nothing is found on an image with the trigger, by a poisoned loss.

    BLINDING of Detector Collapse (arXiv 2404.11357): everything is taken for background. The form
    of the loss is ours.
    """

    # A search for disappearance covers it: only training differs.
    searched_at: ClassVar[tuple[str, ...]] = ()
    channels: ClassVar[dict[str, int]] = {**Disappearance.channels, "max_objectness": -1}

    def of_anchors(self, objectness: Tensor) -> Tensor:
        """``-log(1 - p)``: nothing is there."""
        return -F.logsigmoid(-objectness)

    def of_proposals(self, logits: Tensor) -> Tensor:
        """``-log softmax(z)[background]``."""
        return -logits.log_softmax(1)[:, -1]

    def wanted(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Annotations:
        """The annotations of all but the victims."""
        return Disappearance.poison(self, record, image_size, rng).annotations
