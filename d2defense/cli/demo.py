# SPDX-License-Identifier: Apache-2.0
"""See the whole job on detectors that come with the package.

Scans ten small traffic-sign detectors, seven of them backdoored, searches those for triggers on
which the bank finds nothing, repairs one that overlooks objects and one that sees ghosts with a
small clean set, scans and measures them again, and writes a report with pictures of what was found.
Nothing is downloaded; takes about six minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .arguments import add_common_arguments, configure_logging, defense_config

NAME = "demo"
HELP = "scan ten small detectors, repair two backdoored ones, and write a report about it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        metavar="DIR",
        help="results go here (%(default)s)",
    )
    add_common_arguments(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo and print its tables; 0 unless a specimen is missing."""
    from d2defense.detection import CalibrationError, ScanSettings, calibration_from_config
    from d2defense.report.table import format_table
    from d2defense.workflows.demo import run_demo
    from d2defense.workflows.repair import format_repair

    configure_logging()
    # Minutes count here; --opts says otherwise.
    args.opts = ["DEFENSE.SEARCH", "fast", *args.opts]
    cfg = defense_config(args, args.parser)
    try:
        settings = ScanSettings.from_config(cfg)
        calibration = calibration_from_config(cfg, settings)
        demo = run_demo(args.output, settings, calibration, args.device)
    except (CalibrationError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(format_table(demo.results, truth=demo.truth))
    for repair in demo.summary["repairs"].values():
        print(f"\n{format_repair(repair)}")
    for line in ("", *(f"missed: {missed}" for missed in demo.summary["missed"])):
        print(line)
    print(f"report: {demo.report}")
    return 0
