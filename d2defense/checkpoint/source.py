# SPDX-License-Identifier: Apache-2.0
"""What paths turned out to hold: checkpoints, and what is left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .errors import CheckpointError
from .weights import WEIGHTS_SUFFIXES


@dataclass(frozen=True)
class CheckpointSource:
    """One set of weights to scan, or why there is none.

    Attributes:
        name: unique among the sources of one call, usable as the name of a folder.
        path: what the caller named or the walk found.
        weights: the weights file, None where ``error`` is set.
        config: its configuration file, None where ``error`` is set.
        trusted_config: whether the caller named that file, or one of the model zoo.
        member: which of the file's sets of weights; the one that Detectron2 loads if None.
        copies: other files of the same bytes and the same config.
        left_out: other weights of its folder that are not scanned, because only the final ones
            were asked for.
        warnings: what is odd about its folder, one line each.
        error: why the path holds no checkpoint.
    """

    name: str
    path: Path
    weights: Path | None = None
    config: Path | None = None
    trusted_config: bool = False
    member: str | None = None
    copies: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    error: CheckpointError | None = None

    @property
    def format(self) -> str | None:
        """As what the weights file is read: ``pth``, ``pt``, ``pkl`` or ``safetensors``.

        None where ``error`` is set.
        """
        if self.weights is None:
            return None
        # Detectron2 reads any other name with PyTorch, too.
        suffix = self.weights.suffix
        return (suffix if suffix in WEIGHTS_SUFFIXES else ".pth").removeprefix(".")


class LeftOut(NamedTuple):
    """Something that was not looked into, and is no error."""

    path: Path
    reason: str


class Discovery(NamedTuple):
    """All that paths stand for."""

    sources: list[CheckpointSource]
    """The checkpoints, in the order of the paths, and errors for what holds none."""
    left_out: list[LeftOut]
    """What was passed over and might matter to somebody."""
