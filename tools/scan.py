#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Scan detectors for backdoors; ``d2defense scan`` is the same command."""

import sys

from d2defense.cli.program import run_command

if __name__ == "__main__":
    sys.exit(run_command("scan"))
