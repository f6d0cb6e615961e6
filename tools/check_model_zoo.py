#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare every two-stage detector of Detectron2's model zoo with its instrumented twin.

Random weights, no download: both must have equal state-dict keys and bit-identical detections, and
the probe must say what the stock modules say. Prints a Markdown table; exit code 2 if any differs.

    python tools/check_model_zoo.py
    python tools/check_model_zoo.py Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from d2defense.cli.arguments import silence_developer_notices
from d2defense.cli.ending import FAILED, run_to_end


def main() -> int:
    """Check the configs that the arguments name, all of them by default."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="names in the model zoo")
    names = parser.parse_args().configs
    silence_developer_notices()
    from d2defense.workflows.model_zoo import check_model_zoo, model_zoo_configs

    names = names or model_zoo_configs()
    print("| config | ROI heads | parameters | proposals | detections | outcome |")
    print("| --- | --- | --- | --- | --- | --- |")
    outcomes: Counter[str] = Counter()
    for parity in tqdm(check_model_zoo(names), total=len(names), unit="config", disable=None):
        outcomes[parity.outcome] += 1
        outcome = f"{parity.outcome}: {parity.detail}" if parity.detail else parity.outcome
        millions = f"{parity.parameters / 1e6:.1f} M" if parity.parameters else ""
        counts = f"{parity.proposals or ''} | {parity.detections or ''}"
        print(f"| {parity.config} | {parity.roi_heads} | {millions} | {counts} | {outcome} |")
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    return FAILED if outcomes["different"] else 0


if __name__ == "__main__":
    sys.exit(run_to_end(main, Path(sys.argv[0]).name))
