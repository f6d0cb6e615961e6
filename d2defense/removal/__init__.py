# SPDX-License-Identifier: Apache-2.0
"""Removing a backdoor: reset module groups, fine-tune on the defender's set."""

from .config import renewal_config
from .reset import reset_modules
from .trainer import METHODS, RenewalTrainer

__all__ = ["METHODS", "RenewalTrainer", "renewal_config", "reset_modules"]
