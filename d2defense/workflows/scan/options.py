# SPDX-License-Identifier: Apache-2.0
"""How a scan is carried out, which does not change what it finds."""

from __future__ import annotations

from dataclasses import dataclass, field

from d2defense.isolation import Limits

PROCESS = "process"
NONE = "none"


class UsageError(ValueError):
    """What is asked for cannot be done, and nothing was scanned; the message says why."""


@dataclass(frozen=True)
class RunOptions:
    """How a scan is carried out.

    Attributes:
        isolation: "process" scans each checkpoint in a confined process of its own, "none" in the
            caller's.
        require_isolation: scan nothing where a protection of these processes is missing.
        limits: of memory and time of one checkpoint; kept where each has its own process.
        workers: checkpoints that are scanned at once on this machine.
        num_gpus: of this machine, given to the workers in turn; 0 leaves the device as it is. On a
            Ray cluster, GPUs of one task.
        ray_address: of a Ray cluster that scans instead of this machine; None for none.
        force: scan also what was scanned before.
        figures: whether to draw.
        progress: whether to show progress; None for only on a terminal.

    Raises:
        ValueError: options that contradict each other or are out of range.
    """

    isolation: str = PROCESS
    require_isolation: bool = False
    limits: Limits = field(default_factory=Limits)
    workers: int = 1
    num_gpus: int = 0
    ray_address: str | None = None
    force: bool = False
    figures: bool = True
    progress: bool | None = None

    def __post_init__(self) -> None:
        if self.isolation not in (PROCESS, NONE):
            raise ValueError(f"isolation {self.isolation!r} is neither {PROCESS!r} nor {NONE!r}")
        if self.require_isolation and self.isolation == NONE:
            raise ValueError("isolation 'none' offers no protection that could be required")
        if self.workers < 1:
            raise ValueError(f"workers {self.workers} is not positive")
        if self.num_gpus < 0:
            raise ValueError(f"num_gpus {self.num_gpus} is negative")
        if self.ray_address is None and self.isolation == NONE and self.workers > 1:
            raise ValueError("several workers need isolation 'process'")
