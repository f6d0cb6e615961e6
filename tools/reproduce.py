#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Reproduce the paper's tables and figures; ``d2defense reproduce`` is the same command."""

import sys

from d2defense.cli.program import run_command

if __name__ == "__main__":
    sys.exit(run_command("reproduce"))
