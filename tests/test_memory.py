# SPDX-License-Identifier: Apache-2.0
"""Freed memory stays with the process: the next use of it costs the kernel nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys, torch
torch.set_num_threads(1)
import d2defense.workflows.scan  # the heap as it is in a scan
from d2defense.memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def use():
    blocks = [torch.ones(2 << 20) for _ in range(8)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the C library of Linux")
def test_pages_are_faulted_in_once():
    faults = {
        mode: int(
            subprocess.run(
                [sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True
            ).stdout
        )
        for mode in ("keep", "give_back")
    }
    # 5 times 64 MiB are 80,000 pages of 4 KiB, fewer where the system uses larger ones.
    assert faults["keep"] < 0.2 * faults["give_back"]
