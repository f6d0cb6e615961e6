# SPDX-License-Identifier: Apache-2.0
"""Freed memory stays with the process: the next use of it costs the kernel nothing."""

from __future__ import annotations

import sys

import pytest
from programs import run

PROGRAM = """
import resource, torch
torch.set_num_threads(1)
import d2defense.workflows.scan.confined  # the heap as it is in a scan
from d2defense.memory import keep_freed_memory
def use():
    blocks = [torch.ones(2 << 20) for _ in range(8)]
def faults():
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        use()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
assert keep_freed_memory()
print(given_back, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the C library of Linux")
def test_pages_are_faulted_in_once(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    ended = run(script=tmp_path / "program.py")
    assert ended.returncode == 0, ended.stderr
    given_back, kept = map(int, ended.stdout.split())
    # 5 times 64 MiB are 80,000 pages of 4 KiB, fewer where the system uses larger ones.
    assert kept < 0.2 * given_back
