# SPDX-License-Identifier: Apache-2.0
"""Where the steps of a study are done, and the processes that do them."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from d2defense.isolation.errors import ProtectionError
from d2defense.isolation.system import die_with_parent, is_linux


@dataclass(frozen=True)
class Workplace:
    """Where and with what steps are done.

    Attributes:
        folder: of the study.
        threads: of each process.
        num_gpus: that a training uses; 0 for the CPU.
    """

    folder: Path
    threads: int = 1
    num_gpus: int = 0

    @property
    def device(self) -> str:
        """Of everything but training."""
        return "cuda" if self.num_gpus else "cpu"


def end_with(parent: int) -> None:
    """Have this process killed when its parent ends, where the system can do that."""
    if not is_linux():
        return
    with contextlib.suppress(ProtectionError):
        die_with_parent()
        if os.getppid() != parent:
            os._exit(1)
