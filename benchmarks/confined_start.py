#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Measure what it costs to do something in a confined process: its start, confinement and end.

python benchmarks/confined_start.py
python benchmarks/confined_start.py --light     # a server without torch and what builds on it
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

from d2defense.isolation import Server
from d2defense.workflows.scan.confined import preload


def main() -> int:
    """Print the server's start and the median and largest time of a run that does nothing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=40, help="runs to time (%(default)s)")
    parser.add_argument("--light", action="store_true", help="import nothing beforehand")
    args = parser.parse_args()
    server = Server(() if args.light else preload())
    seconds = []
    isolation = None
    for _ in range(args.runs + 1):
        start = time.perf_counter()
        run = server.start("operator:is_", None)
        run.wait(lambda content, blob: None)
        seconds.append(time.perf_counter() - start)
        isolation = run.isolation
    server.close()
    # The first run waits for the server's imports.
    first, *rest = seconds
    milliseconds = [1000 * value for value in rest]
    print(
        f"first run, with the server's start: {first:.2f} s\n"
        f"each run after it: median {statistics.median(milliseconds):.1f} ms, "
        f"largest {max(milliseconds):.1f} ms\nprotections: {isolation}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
