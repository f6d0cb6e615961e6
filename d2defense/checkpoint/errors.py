# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint that cannot be used raises."""

from __future__ import annotations

from pathlib import Path


class CheckpointError(ValueError):
    """A checkpoint, its config or its folder cannot be used.

    Args:
        path: the file or folder at fault.
        reason: why, in one line.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = Path(path)
        self.reason = " ".join(str(reason).split())[:500]
        super().__init__(f"{self.path}: {self.reason}")
