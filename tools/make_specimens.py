#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the specimens that ship with the package."""

import sys

from d2defense.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command("specimens"))
