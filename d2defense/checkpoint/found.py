# SPDX-License-Identifier: Apache-2.0
"""A weights file on its way from the walk to the sources."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .errors import CheckpointError
from .file_kinds import FileKind
from .naming import UniqueNames
from .source import CheckpointSource


@dataclass
class Found:
    """A weights file, or why there is none.

    Attributes:
        path: what the caller named or the walk found.
        name: wanted for it; the last part of ``path`` if empty.
        weights: the file; also of weights that cannot be scanned.
        config: its configuration.
        trusted_config: whether the caller named that.
        inode: device and number of the file.
        kind: what is in the file.
        lacks_config: whether nothing but a configuration is missing.
        copies, left_out, warnings: as in :class:`CheckpointSource`.
        error: why it cannot be scanned.
    """

    path: Path
    name: str = ""
    weights: Path | None = None
    config: Path | None = None
    trusted_config: bool = False
    inode: tuple[int, int] | None = None
    kind: FileKind | None = None
    lacks_config: bool = False
    copies: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: CheckpointError | None = None

    @property
    def config_place(self) -> str:
        """Absolute path of the configuration; empty if there is none."""
        return os.path.abspath(self.config) if self.config is not None else ""

    def fail(self, reason: str) -> None:
        """Make an error of it."""
        self.error = CheckpointError(self.path, reason)

    def sources(self, names: UniqueNames, only_final: bool) -> Iterator[CheckpointSource]:
        """One source for each set of weights in the file.

        Args:
            names: gives them their names.
            only_final: leave out what Detectron2 does not load.
        """
        wanted = self.name or os.path.basename(os.path.abspath(self.path))
        if self.error is not None:
            yield CheckpointSource(
                names.choose(wanted),
                self.path,
                warnings=self.warnings,
                left_out=self.left_out,
                error=self.error,
            )
            return
        members = self.kind.members if self.kind is not None else (None,)
        left_out = self.left_out
        if only_final:
            left_out += tuple(
                f"{self.weights}: {member}" for member in members if member is not None
            )
            members = (None,)
        for number, member in enumerate(members):
            yield CheckpointSource(
                name=names.choose(wanted if member is None else f"{wanted}_{member}"),
                path=self.path,
                weights=self.weights,
                config=self.config,
                trusted_config=self.trusted_config,
                member=member,
                copies=self.copies,
                left_out=() if number else left_out,
                warnings=() if number else self.warnings,
            )
