# SPDX-License-Identifier: Apache-2.0
"""Removal methods by name: one file each, registered in REMOVAL_REGISTRY."""

from .base import REMOVAL_REGISTRY, RemovalMethod
from .fine_pruning import FinePruning
from .nad import NeuralAttentionDistillation
from .renewal import Renewal
from .reset_all import ResetAll
from .vanilla import Vanilla

__all__ = [
    "REMOVAL_REGISTRY",
    "FinePruning",
    "NeuralAttentionDistillation",
    "RemovalMethod",
    "Renewal",
    "ResetAll",
    "Vanilla",
]
