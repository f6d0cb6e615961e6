# SPDX-License-Identifier: Apache-2.0
"""Learn from known-clean detectors which score is suspicious.

Scans the checkpoints and writes their scores, with the threshold that follows from them, to a
file that `d2defense scan --calibration FILE` reads. Use the images and the triggers that you
will scan with; the more clean detectors, the lower the threshold.

    d2defense calibrate clean_a/ clean_b/ clean_c/ --dataset my_val --output thresholds.json
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
from .settings import add_decision_argument, add_settings_arguments, settings_config

NAME = "calibrate"
HELP = "set the threshold of scans from detectors that are known to be clean"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "checkpoints",
        nargs="+",
        metavar="CLEAN_CHECKPOINT",
        help="output folders or weights files of detectors that are known to be clean",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="JSON file")
    parser.add_argument(
        "--false-alarm-rate",
        type=float,
        default=0.01,
        metavar="RATE",
        help="share of clean detectors that may be called backdoored (%(default)s)",
    )
    parser.add_argument(
        "--name", default="", metavar="TEXT", help="what the detectors are, for reports"
    )
    add_settings_arguments(parser)
    add_decision_argument(parser)
    add_dataset_arguments(parser)
    add_common_arguments(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Scan the clean detectors and write the file."""
    from d2defense.checkpoint import CheckpointError
    from d2defense.data import DatasetError
    from d2defense.detection import CalibrationError, ScanSettings, check_false_alarm_rate
    from d2defense.workflows.calibration import calibrate

    configure_logging()
    dataset = dataset_source(args, args.parser)
    try:
        check_false_alarm_rate(args.false_alarm_rate)
        settings = ScanSettings.from_config(settings_config(args, args.parser))
        calibration = calibrate(
            args.checkpoints, dataset, settings, args.false_alarm_rate, args.name, args.device
        )
    except (CalibrationError, CheckpointError, DatasetError, ValueError) as error:
        args.parser.error(str(error))
    calibration.save(args.output)
    scores = ", ".join(f"{score:.3f}" for score in calibration.reference.clean_scores)
    print(f"clean scores {scores}: threshold {calibration.threshold:.3f}, in {args.output}")
    estimate = calibration.leave_one_out()
    if estimate:
        print(
            f"leave-one-out: {estimate.alarms} of {estimate.detectors} would be false alarms "
            f"(target {calibration.false_alarm_rate:g})"
        )
    else:
        print("leave-one-out: needs at least 4 clean detectors")
    return 0
