#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the specimens that ship with the package, and the default calibration.

    python tools/make_specimens.py                        # everything, into the package
    python tools/make_specimens.py --output my_specimens --only clean_0

The calibration rests on further clean detectors (clean_faster_rcnn_tiny_fpn_101 ..), which are kept
outside of the package. Training takes about six minutes a detector on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from d2defense.cli.arguments import configure_logging, silence_developer_notices
from d2defense.cli.ending import run_to_end


def main() -> int:
    """Make the specimens that the arguments name and print their table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    args = parser.parse_args()
    silence_developer_notices()
    from d2defense.checkpoint.specimens import specimens_root
    from d2defense.workflows.evaluation import format_evaluation
    from specimen_training import CALIBRATION_MODELS, SPECIMENS, calibrate_default, make_specimen

    configure_logging()
    output = args.output or specimens_root()
    recipes = {specimen.name: specimen for specimen in (*SPECIMENS, *CALIBRATION_MODELS)}
    for name in args.only or recipes:
        if name not in recipes:
            parser.error(f"no specimen {name}; there are {', '.join(recipes)}")
    for name in args.only or recipes:
        command = f"python tools/make_specimens.py --only {name}"
        folder = args.calibration_models if recipes[name] in CALIBRATION_MODELS else output
        provenance = make_specimen(recipes[name], folder, args.opts, command)
        print(format_evaluation([{"error": None, **provenance}]), flush=True)
    if any(recipes[name] in CALIBRATION_MODELS for name in args.only or recipes):
        calibration = calibrate_default(args.calibration_models)
        calibration.save(output.parent / "calibration.json")
        print(f"threshold {calibration.threshold:.3f} in {output.parent / 'calibration.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(run_to_end(main, Path(sys.argv[0]).name))
