# SPDX-License-Identifier: Apache-2.0
"""Train the specimens that ship with the package, and the default calibration.

    python tools/make_specimens.py                        # everything, into the package
    python tools/make_specimens.py --output my_specimens --only clean_0

The calibration rests on further clean detectors (calibration_0 ..), which are kept outside of the
package. Training takes about six minutes a detector on one core.
"""

from __future__ import annotations

import argparse
from pathlib import Path

NAME = "specimens"
HELP = "train the specimens that ship with the package"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the specimens (in the package)"
    )
    parser.add_argument(
        "--calibration-models",
        type=Path,
        default=Path("runs/calibration_models"),
        metavar="DIR",
        help="folder of the clean detectors to calibrate on (%(default)s)",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="make these alone")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of the config"
    )


def run(args: argparse.Namespace) -> int:
    """Make the specimens and print their table."""
    from d2defense.workflows.evaluation import format_evaluation
    from d2defense.workflows.specimens import (
        CALIBRATION_MODELS,
        SPECIMENS,
        calibrate_default,
        make_specimen,
        specimens_root,
    )

    from .arguments import configure_logging

    configure_logging()
    output = args.output or specimens_root()
    chosen = [s for s in (*SPECIMENS, *CALIBRATION_MODELS) if not args.only or s.name in args.only]
    made = []
    for specimen in chosen:
        command = f"python tools/make_specimens.py --only {specimen.name}"
        folder = args.calibration_models if specimen in CALIBRATION_MODELS else output
        made.append({"error": None, **make_specimen(specimen, folder, args.opts, command)})
        print(format_evaluation(made[-1:]), flush=True)
    if any(specimen in CALIBRATION_MODELS for specimen in chosen):
        path = output.parent / "calibration.json"
        calibration = calibrate_default(args.calibration_models)
        calibration.save(path)
        print(f"threshold {calibration.threshold:.3f} in {path}")
    return 0
