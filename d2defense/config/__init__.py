# SPDX-License-Identifier: Apache-2.0
"""The ATTACK, DEFENSE, REMOVAL and SCREENING nodes on top of Detectron2's configuration."""

from .defaults import (
    OWN_NODES,
    add_d2defense_config,
    add_part_config,
    get_base_cfg,
    get_d2defense_cfg,
    merge_overrides,
)
from .files import merge_config_file
from .paths import config_root, find_config

__all__ = [
    "OWN_NODES",
    "add_d2defense_config",
    "add_part_config",
    "config_root",
    "find_config",
    "get_base_cfg",
    "get_d2defense_cfg",
    "merge_config_file",
    "merge_overrides",
]
