# SPDX-License-Identifier: Apache-2.0
"""What `--early-stop` saves, and whether the verdicts stay.

Scans detectors to the end and with a sequential test, on the same images.

    python benchmarks/early_stop.py d2defense/assets/specimens --dataset synth_signs_defender
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from tabulate import tabulate

from d2defense.checkpoint import find_checkpoints
from d2defense.cli.arguments import (
    add_common_arguments,
    add_dataset_arguments,
    dataset_source,
)
from d2defense.cli.settings import (
    add_decision_arguments,
    add_settings_arguments,
    settings_config,
)
from d2defense.detection import (
    ScanImages,
    ScanSettings,
    calibration_from_config,
    inspect_detector,
    open_subject,
)
from d2defense.files import write_text


def main() -> int:
    """Scan twice and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--output", type=Path, metavar="FILE", help="Markdown")
    parser.add_argument("--error-rates", nargs="+", type=float, default=[0.05, 0.01])
    add_settings_arguments(parser)
    add_decision_arguments(parser)
    add_dataset_arguments(parser)
    add_common_arguments(parser)
    args = parser.parse_args()
    config = settings_config(args, parser)
    whole = dataclasses.replace(ScanSettings.from_config(config), early_stop=False)
    calibration = calibration_from_config(config, whole)
    images = ScanImages.load(dataset_source(args, parser), whole)
    calibration.check_images(images.name, images.fingerprint)
    rows, used, total = [], dict.fromkeys(args.error_rates, 0), 0
    for source in find_checkpoints(args.checkpoints, only_final=True):
        if source.error:
            raise SystemExit(str(source.error))
        model, loaded, cfg = open_subject(source, images, whole, args.device)
        full = inspect_detector(
            model, loaded, whole, calibration, cfg.INPUT.FORMAT, fingerprint=images.fingerprint
        )
        row = {
            "checkpoint": source.name,
            "all images": f"{full.verdict.label} {full.verdict.score:.3f}",
        }
        total += full.num_images
        for rate in args.error_rates:
            early = dataclasses.replace(whole, early_stop=True, early_stop_error_rate=rate)
            seen = inspect_detector(
                model, loaded, early, calibration, cfg.INPUT.FORMAT, fingerprint=images.fingerprint
            )
            row[f"early at {rate:g}"] = f"{seen.verdict.label} {seen.verdict.score:.3f}"
            row[f"images at {rate:g}"] = f"{seen.num_images} of {full.num_images}"
            used[rate] += seen.num_images
        rows.append(row)
        print(row, flush=True)
    text = tabulate(rows, headers="keys", tablefmt="github") + "\n\n"
    for rate, count in used.items():
        text += f"error rate {rate:g}: {1 - count / total:.0%} of the forward passes saved\n"
    print(text)
    if args.output:
        write_text(args.output, text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
