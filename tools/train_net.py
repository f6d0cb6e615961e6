#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train or evaluate a detector; ``d2defense train`` is the same command."""

import sys

from d2defense.cli.program import run_command

if __name__ == "__main__":
    sys.exit(run_command("train"))
