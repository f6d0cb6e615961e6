# SPDX-License-Identifier: Apache-2.0
"""Plain fine-tuning: the baseline."""

from __future__ import annotations

from .base import RemovalMethod, registered


@registered("vanilla")
class Vanilla(RemovalMethod):
    """Fine-tunes the whole model as it is (the paper's baseline, arXiv 2409.16057, section 4.3)."""
