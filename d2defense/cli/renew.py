# SPDX-License-Identifier: Apache-2.0
"""Repair a backdoored detector with a small clean labelled set.

Resets module groups and fine-tunes the whole model with photometric distortion and random flip
(the paper's targeted renewal fine-tuning). The original stays untouched; the output folder is a
Detectron2 output folder.

    d2defense renew downloads/model --dataset synth_signs_defender --output runs/renewed
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .arguments import (
    add_common_arguments,
    add_dataset_arguments,
    configure_logging,
    dataset_source,
)

NAME = "renew"
HELP = "repair a backdoored checkpoint with a small clean set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="output folder or .pth")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="new checkpoint")
    parser.add_argument(
        "--modules",
        nargs="+",
        metavar="NAME",
        help="module groups to reset (those that classify proposals)",
    )
    parser.add_argument(
        "--method",
        metavar="NAME",
        default="renewal",
        help="renewal, vanilla (no reset), reset_all, fine_pruning or nad (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    add_dataset_arguments(parser)
    add_common_arguments(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Renew the checkpoint; 0, or 2 after one line on why it could not be."""
    from d2defense.checkpoint import find_checkpoints
    from d2defense.workflows.renew import renew

    configure_logging()
    dataset = dataset_source(args, args.parser)
    (source, *more) = find_checkpoints([args.checkpoint])
    if more:
        args.parser.error(f"{args.checkpoint}: holds several checkpoints; name one")
    try:
        if source.error:
            raise source.error
        renewal = renew(
            source,
            dataset,
            args.output,
            args.modules,
            args.method,
            args.seed,
            args.opts,
            args.device,
        )
    except ValueError as error:
        args.parser.error(str(error))
    print(f"{renewal.output_dir}: {args.method} in {renewal.seconds:.0f} s")
    return 0
