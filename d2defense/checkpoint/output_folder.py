# SPDX-License-Identifier: Apache-2.0
"""What lies in an output folder of Detectron2, and which of it Detectron2 would load."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .file_kinds import WEIGHTS, FileKind
from .tree import Folder
from .weights import WEIGHTS_SUFFIXES

CONFIG_NAME = "config.yaml"
MARKER_NAME = "last_checkpoint"
FINAL_WEIGHTS_NAME = "model_final.pth"
FINAL_NAMES = tuple(f"model_final{suffix}" for suffix in WEIGHTS_SUFFIXES)
LAZY_CONFIG_NAMES = ("config.py", "config.yaml.pkl")

_NUMBERED = re.compile(r"model_(\d{1,18})\.pth")
# Where Detectron2 keeps its own weights, from which most trainings start.
_OWN_WEIGHTS = ("detectron2://", "catalog://", "https://dl.fbaipublicfiles.com/")


@dataclass(frozen=True)
class Candidate:
    """A file of weights, or a name that should be one.

    Attributes:
        path: of the file.
        inode: that tells whether two are one file.
        kind: what is in it.
        problem: why its name leads to no file, to follow the name in a sentence.
        error: why it could not be looked at.
    """

    path: Path
    inode: tuple[int, int] | None = None
    kind: FileKind | None = None
    problem: str | None = None
    error: str | None = None


@dataclass
class Group:
    """Weights that share a config: those of an output folder, with what lies below it.

    Attributes:
        folder: that holds the config, or the weights where there is none.
        candidates: the weights, in the order of the walk.
        marker: the file that ``last_checkpoint`` names, if it is in the tree.
        configured: the file that ``MODEL.WEIGHTS`` names, if it is in the tree.
    """

    folder: Folder
    candidates: list[Candidate] = field(default_factory=list)
    marker: Path | None = None
    configured: Path | None = None

    @property
    def has_config(self) -> bool:
        """Whether there is a file under the name of a config."""
        return CONFIG_NAME in self.folder

    @property
    def final(self) -> Candidate | None:
        """The weights of a finished training."""
        by_path = {candidate.path: candidate for candidate in self.candidates}
        finals = (by_path.get(self.folder.path / name) for name in FINAL_NAMES)
        return next(filter(None, finals), None)

    @property
    def primary(self) -> Candidate | None:
        """The weights that stand for the folder; None if nothing tells.

        ``model_final``, else what ``last_checkpoint`` or ``MODEL.WEIGHTS`` name, else the newest of
        a run's numbered checkpoints, else the only ones.
        """
        if self.final is not None:
            return self.final
        for path in (self.marker, self.configured):
            for candidate in self.candidates:
                if candidate.path == path:
                    return candidate
        weights = [c for c in self.candidates if c.kind is not None and c.kind.kind == WEIGHTS]
        return weights[0] if len(weights) == 1 else self._newest(weights)

    def _newest(self, weights: list[Candidate]) -> Candidate | None:
        """The last of a run's numbered checkpoints; None if there are other weights beside them."""
        here = [c for c in weights if c.path.parent == self.folder.path]
        numbers = [_NUMBERED.fullmatch(candidate.path.name) for candidate in here]
        if not here or not all(numbers):
            return None
        return max(zip(numbers, here, strict=True), key=lambda pair: int(pair[0].group(1)))[1]


def group_folders(
    folders: list[Folder], hands_down: Callable[[Folder], bool]
) -> Iterator[tuple[Folder, Folder]]:
    """Each folder with the one whose config its weights have: its own, or the next above.

    A folder without one above it stands for itself.

    Args:
        folders: in the order of a walk from the top.
        hands_down: whether the config of a folder is one for the weights below.
    """
    home: dict[Path, Folder] = {}
    for folder in folders:
        above = home.get(folder.path.parent)
        if CONFIG_NAME in folder or above is None or not hands_down(above):
            home[folder.path] = folder
        else:
            home[folder.path] = above
        yield folder, home[folder.path]


def is_elsewhere(name: str) -> bool:
    """Whether ``MODEL.WEIGHTS`` names weights that neither are here nor are Detectron2's own."""
    return bool(name) and not name.startswith(_OWN_WEIGHTS)


def place_of(name: str, folder: Path, root: Path) -> Path | None:
    """The path below ``root`` that a name in a file of ``folder`` means; None if it leads out."""
    if "://" in name or "\0" in name:
        return None
    top = os.path.abspath(root)
    absolute = os.path.normpath(os.path.join(os.path.abspath(folder), name))
    if absolute != top and not absolute.startswith(top.rstrip(os.sep) + os.sep):
        return None
    return root / os.path.relpath(absolute, top)
