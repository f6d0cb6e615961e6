# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint that cannot be used raises."""

from __future__ import annotations

from pathlib import Path

from d2defense.text import printable, shorten

_MAX_PATH = 300
_MAX_REASON = 500


class CheckpointError(ValueError):
    """A checkpoint, its config or its folder cannot be used.

    The message is one printable line: names and contents come from whoever made the files.

    Args:
        path: the file or folder at fault.
        reason: why.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        self.path = Path(path)
        self.reason = printable(" ".join(str(reason)[: 4 * _MAX_REASON].split()))[:_MAX_REASON]
        super().__init__(f"{shorten(self.path, _MAX_PATH)}: {self.reason}")

    def __reduce__(self) -> tuple[type[CheckpointError], tuple[Path, str]]:
        """Errors travel between processes; what they are made from is not their message."""
        return type(self), (self.path, self.reason)


class NoCheckpointError(CheckpointError):
    """A folder holds no checkpoint."""
