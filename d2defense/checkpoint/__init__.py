# SPDX-License-Identifier: Apache-2.0
"""Finding and safely loading checkpoints that nobody vouches for."""

from .config import load_config
from .discover import CheckpointSource, find_checkpoints
from .errors import CheckpointError
from .model import build_detector, load_weights
from .weights import file_sha256, load_state_dict, save_state_dict

__all__ = [
    "CheckpointError",
    "CheckpointSource",
    "build_detector",
    "file_sha256",
    "find_checkpoints",
    "load_config",
    "load_state_dict",
    "load_weights",
    "save_state_dict",
]
