# SPDX-License-Identifier: Apache-2.0
"""Plain fine-tuning: the baseline."""

from __future__ import annotations

from d2defense.registry import REMOVAL_REGISTRY

from .base import RemovalMethod


@REMOVAL_REGISTRY.register("vanilla")
class Vanilla(RemovalMethod):
    """Plain fine-tuning of the whole detector: the paper's baseline (section 4.3)."""
