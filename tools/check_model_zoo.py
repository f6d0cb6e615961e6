#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Compare every detector of Detectron2's model zoo with its instrumented twin.

Random weights, no download: both must have equal state-dict keys and bit-identical detections, and
the probe must say what the stock modules say. Exit code 2 if any differs.

    python tools/check_model_zoo.py --json docs/reference/model_zoo.json
    python tools/check_model_zoo.py Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import asdict
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
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    args = parser.parse_args()
    silence_developer_notices()
    from d2defense.environment import library_versions
    from d2defense.files import write_json
    from model_zoo_parity import check_model_zoo, model_zoo_configs

    names = args.configs or model_zoo_configs()
    found = []
    for parity in tqdm(check_model_zoo(names), total=len(names), unit="config", disable=None):
        found.append(asdict(parity))
        print(parity.config, ": ".join(filter(None, (parity.outcome, parity.detail))), flush=True)
    outcomes = Counter(parity["outcome"] for parity in found)
    print("\n" + ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))
    if args.json:
        write_json(args.json, {"versions": library_versions(), "configs": found})
    return FAILED if outcomes["different"] else 0


if __name__ == "__main__":
    sys.exit(run_to_end(main, Path(sys.argv[0]).name))
