# SPDX-License-Identifier: Apache-2.0
"""The paper's targeted renewal fine-tuning."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from d2defense.modeling import classification_modules
from d2defense.registry import REMOVAL_REGISTRY

from ..reset import reset_modules
from .base import RemovalMethod


@REMOVAL_REGISTRY.register("renewal")
class Renewal(RemovalMethod):
    """The paper's renewal: reset the affected module groups, then fine-tune all of the detector.

    Targeted renewal fine-tuning, arXiv 2409.16057, section 3.5. ``REMOVAL.MODULES`` are reset, or
    the groups that classify proposals where it is empty, with the initialisation of
    ``REMOVAL.SEED``.
    """

    resets_modules: ClassVar[bool] = True

    def modules(self, model: nn.Module) -> tuple[str, ...]:
        """The groups that are reset."""
        return tuple(self.cfg.REMOVAL.MODULES) or classification_modules(model)

    def prepare(self, model: nn.Module) -> list[str]:
        """Reset them; see :func:`d2defense.removal.reset_modules`."""
        return reset_modules(model, self.cfg, self.modules(model), self.cfg.REMOVAL.SEED)
