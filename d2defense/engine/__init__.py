# SPDX-License-Identifier: Apache-2.0
"""Training as Detectron2 does it, on data that an attack may have poisoned."""

from .checkpointer import TrainingCheckpointer
from .trainer import Trainer

__all__ = ["Trainer", "TrainingCheckpointer"]
