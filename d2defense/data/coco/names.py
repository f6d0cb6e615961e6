# SPDX-License-Identifier: Apache-2.0
"""From file names as annotation tools write them to files of the image folder."""

from __future__ import annotations

import os
from collections import defaultdict
from enum import Enum, auto
from urllib.parse import unquote


class Place(Enum):
    """Where a name leads."""

    FOUND = auto()
    RESPELLED = auto()
    """To a file whose name is spelled in another way."""
    OUTSIDE = auto()
    AMBIGUOUS = auto()
    MISSING = auto()


class ImageFolder:
    """Finds the files of one image folder by the names that an annotation file gives.

    A name is relative to the folder, or absolute and inside of it. Where there is no such file, the
    name is tried with ``/`` for ``\\``, without the quotes of a URL (``%20``), and in another
    case: what annotation tools and Windows make of names.

    Args:
        root: the folder.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.normpath(root)
        self._listings: dict[str, dict[str, list[str]]] = {}

    def find(self, name: str) -> tuple[Place, str]:
        """Where ``name`` leads, and the name to use: another one only for ``RESPELLED``."""
        outside = False
        for spelling in dict.fromkeys((name, name.replace("\\", "/"), _unquoted(name))):
            if not self._contains(spelling):
                outside = True
            elif _is_file(os.path.join(self._root, spelling)):
                return (Place.FOUND if spelling == name else Place.RESPELLED), spelling
        if outside:
            return Place.OUTSIDE, name
        matches = self._ignoring_case(_unquoted(name))
        if len(matches) == 1:
            return Place.RESPELLED, matches[0]
        return (Place.AMBIGUOUS if matches else Place.MISSING), name

    def _contains(self, name: str) -> bool:
        """Whether a name leads nowhere but into the folder; links in it are its owner's matter."""
        path = os.path.normpath(os.path.join(self._root, name))
        return path.startswith(self._root.rstrip(os.sep) + os.sep)

    def _ignoring_case(self, name: str) -> list[str]:
        """Files of the folder, relative to it, whose names differ from ``name`` in case alone."""
        path = os.path.normpath(os.path.join(self._root, name))
        found = [""]
        for part in os.path.relpath(path, self._root).split(os.sep):
            found = [
                os.path.join(folder, entry)
                for folder in found
                for entry in self._listing(folder).get(part.casefold(), ())
            ]
        return [name for name in found if _is_file(os.path.join(self._root, name))]

    def _listing(self, folder: str) -> dict[str, list[str]]:
        """Names in a folder below the root, by their case-folded form."""
        if folder not in self._listings:
            listing: dict[str, list[str]] = defaultdict(list)
            try:
                for entry in os.listdir(os.path.join(self._root, folder)):
                    listing[entry.casefold()].append(entry)
            except OSError:
                pass
            self._listings[folder] = listing
        return self._listings[folder]


def _unquoted(name: str) -> str:
    return unquote(name.replace("\\", "/"), errors="surrogateescape")


def _is_file(path: str) -> bool:
    # False also for what no system call takes: NUL, lone surrogates, names that are too long.
    return os.path.isfile(path)
