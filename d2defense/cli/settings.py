# SPDX-License-Identifier: Apache-2.0
"""Options of a scan's settings, most of which `scan` and `calibrate` share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .arguments import add_part_group, defense_config

if TYPE_CHECKING:
    from detectron2.config import CfgNode

# Options and the keys under DEFENSE that they set.
_KEYS = {
    "max_images": "MAX_IMAGES",
    "seed": "SEED",
    "trigger_bank": "TRIGGER_BANK",
    "triggers": "TRIGGERS",
    "class_map": "CLASS_MAP",
    "decision": "DECISION",
    "calibration": "CALIBRATION",
    "allow_mismatch": "ALLOW_MISMATCH",
    "early_stop": "EARLY_STOP",
    "precision": "PRECISION",
    "search": "SEARCH",
    "search_always": "SEARCH_ALWAYS",
    "twin": "TWIN",
    "search_null": "SEARCH_NULL",
}


def add_settings_arguments(parser: argparse.ArgumentParser) -> None:
    """Images, triggers and classes."""
    group = parser.add_argument_group("what is tried")
    group.add_argument(
        "--max-images", type=int, metavar="N", help="draw at most N images; 0 for all (100)"
    )
    group.add_argument("--seed", type=int, metavar="N", help="of the draw of images (0)")
    group.add_argument(
        "--trigger-bank",
        metavar="FILE|NAME",
        help="patches to stamp: a YAML file, or one that comes along, plain or wide (plain)",
    )
    group.add_argument(
        "--triggers", nargs="+", metavar="NAME", help="only these patches of the bank (all)"
    )
    group.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        help="of the network; bf16 is faster where the processor has it (fp32)",
    )
    group.add_argument(
        "--class-map",
        metavar="FILE",
        help="which class of the detectors each class of the dataset is",
    )


def add_decision_argument(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How to score; the group that the option is in is returned."""
    from d2defense.registry import DECISION_REGISTRY

    group = add_part_group(parser, DECISION_REGISTRY, "how it is decided")
    group.add_argument(
        "--decision",
        choices=DECISION_REGISTRY.choices(),
        metavar="NAME",
        help="name of a decision (deployed)",
    )
    return group


def add_decision_arguments(parser: argparse.ArgumentParser) -> None:
    """How to score, what to compare with, and when to end."""
    group = add_decision_argument(parser)
    group.add_argument(
        "--calibration", metavar="FILE", help="made by `d2defense calibrate` (the shipped one)"
    )
    group.add_argument(
        "--allow-mismatch",
        action="store_true",
        default=None,
        help="use that file also with other images than its own; the results say so",
    )
    group.add_argument(
        "--early-stop",
        action="store_true",
        default=None,
        help="end a checkpoint's scan once its verdict is certain",
    )


def settings_config(args: argparse.Namespace, parser: argparse.ArgumentParser) -> CfgNode:
    """d2defense's settings with ``--opts``, then with the options that have names of their own."""
    cfg = defense_config(args, parser)
    for option, key in _KEYS.items():
        value = getattr(args, option, None)
        if value is not None:
            cfg.DEFENSE[key] = tuple(value) if isinstance(value, list) else value
    return cfg
