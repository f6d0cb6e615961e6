# SPDX-License-Identifier: Apache-2.0
"""Finding and safely loading checkpoints that nobody vouches for."""

from .config import load_config
from .discovery import discover, find_checkpoints
from .errors import CheckpointError, NoCheckpointError
from .limits import SizeLimits
from .listing import format_sources
from .model import build_detector, load_weights
from .regular_file import file_sha256
from .source import CheckpointSource, Discovery, LeftOut
from .tensors import nonfinite_tensors
from .weights import load_state_dict, save_state_dict, weight_sets

__all__ = [
    "CheckpointError",
    "CheckpointSource",
    "Discovery",
    "LeftOut",
    "NoCheckpointError",
    "SizeLimits",
    "build_detector",
    "discover",
    "file_sha256",
    "find_checkpoints",
    "format_sources",
    "load_config",
    "load_state_dict",
    "load_weights",
    "nonfinite_tensors",
    "save_state_dict",
    "weight_sets",
]
