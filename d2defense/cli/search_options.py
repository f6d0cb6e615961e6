# SPDX-License-Identifier: Apache-2.0
"""Options of a search for triggers that a scan's bank does not hold."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from d2defense.checkpoint import CheckpointSource
    from d2defense.workflows.scan import RunOptions


def add_search_arguments(
    parser: argparse.ArgumentParser, default: str, with_always: bool = True
) -> None:
    """How thoroughly, and what a found trigger is held against.

    Args:
        parser: gets a group of its own.
        default: how thoroughly where nothing is said, for the help.
        with_always: whether it may be asked for to search what the bank has found, too.
    """
    group = parser.add_argument_group("search for triggers that the bank does not hold")
    group.add_argument(
        "--search",
        choices=("off", "fast", "standard", "thorough"),
        help=f"how thoroughly ({default})",
    )
    if with_always:
        group.add_argument(
            "--search-always",
            action="store_true",
            default=None,
            help="also where the bank has found a backdoor",
        )
    group.add_argument(
        "--reference",
        dest="references",
        action="append",
        default=[],
        metavar="CHECKPOINT",
        help="a detector of the same classes that is held to be clean; may be given again",
    )
    group.add_argument(
        "--twin",
        choices=("auto", "always", "off"),
        help="hold it against itself after fine-tuning on the clean images: where there is no "
        "reference, and to prove what is found on images of your own; always; or never (auto)",
    )
    group.add_argument(
        "--search-null",
        metavar="FILE",
        help="what searches of clean detectors show on images like yours, made by "
        "tools/calibrate_search.py (the shipped one, of signs)",
    )


def references_of(
    args: argparse.Namespace, options: RunOptions | None = None
) -> list[CheckpointSource]:
    """The checkpoints that ``--reference`` names."""
    from d2defense.workflows.scan import UsageError, find_sources

    if not args.references:
        return []
    try:
        found = find_sources(args.references, only_final=True, options=options)
    except UsageError as error:
        args.parser.error(str(error))
    for source in found.sources:
        if source.error is not None:
            args.parser.error(f"--reference: {source.error}")
    if not found.sources:
        args.parser.error("--reference: there is no checkpoint")
    return found.sources
