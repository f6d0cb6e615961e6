# SPDX-License-Identifier: Apache-2.0
"""Removing a backdoor: reset module groups, fine-tune on the defender's set."""

from .config import renewal_config
from .methods import REMOVAL_REGISTRY, RemovalMethod
from .patches import PatchAugmentation
from .reset import reset_modules
from .trainer import RenewalTrainer

__all__ = [
    "REMOVAL_REGISTRY",
    "PatchAugmentation",
    "RemovalMethod",
    "RenewalTrainer",
    "renewal_config",
    "reset_modules",
]
