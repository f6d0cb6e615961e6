# SPDX-License-Identifier: Apache-2.0
"""What a stream of images through a guard costs: time beside stock inference, and memory.

python benchmarks/screening_stream.py d2defense/assets/specimens/backdoored_1 --images 1000
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import torch
from detectron2.data import DatasetMapper

from d2defense.checkpoint import build_detector, find_checkpoints
from d2defense.data import load_dataset
from d2defense.screening import SUSPICION, Guard


def resident_mib() -> float:
    """Memory of this process in MiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise OSError("/proc/self/status has no VmRSS")


def main() -> int:
    """Stream, and print a line every hundred images."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--method", default="inconsistency")
    parser.add_argument("--clean", default="synth_signs_defender")
    parser.add_argument("--dataset", default="synth_signs_val")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    (source,) = find_checkpoints([args.checkpoint], only_final=True)
    model, cfg = build_detector(source.weights, source.config)
    mapper = DatasetMapper(cfg, is_train=False)
    clean = [mapper(dict(record)) for record in load_dataset(args.clean)[:100]]
    records = load_dataset(args.dataset)
    guard = Guard(model, clean, args.method)
    stock, guarded, passes, alarms = 0.0, 0.0, 0.0, 0
    for index in range(args.images):
        inputs = [mapper(dict(records[index % len(records)]))]
        start = time.perf_counter()
        # Stock inference now and then is enough to compare with.
        if index % 10 == 0:
            with torch.no_grad():
                model(inputs)
            stock += time.perf_counter() - start
            start = time.perf_counter()
        (output,) = guard(inputs)
        guarded += time.perf_counter() - start
        passes += output[SUSPICION].look.passes
        alarms += output[SUSPICION].is_suspicious
        if (index + 1) % 100 == 0:
            count = index + 1
            print(
                f"{count} images: {resident_mib():.0f} MiB, {1000 * guarded / count:.1f} ms an "
                f"image, {1000 * stock / -(-count // 10):.1f} ms without the guard, "
                f"{passes / count:.3f} passes, {alarms} alarms",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
