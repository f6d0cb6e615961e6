# SPDX-License-Identifier: Apache-2.0
"""Removing a backdoor: removal methods, most of which fine-tune on the defender's set."""

from .config import removal_config
from .methods.base import FineTune, RemovalMethod
from .patches import PatchAugmentation
from .reset import reset_modules
from .trainer import RemovalTrainer

__all__ = [
    "FineTune",
    "PatchAugmentation",
    "RemovalMethod",
    "RemovalTrainer",
    "removal_config",
    "reset_modules",
]
