# SPDX-License-Identifier: Apache-2.0
"""The names below a folder that nobody vouches for. Nothing is opened here."""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path

from .regular_file import reason_of

#: Files and folders below one path.
MAX_ENTRIES = 200_000
#: Folders inside each other.
MAX_DEPTH = 64
#: Seconds for one path. Links whose targets are long take their time.
MAX_SECONDS = 120.0


@dataclass(frozen=True)
class FileEntry:
    """A regular file, or a link to one inside the tree.

    Attributes:
        path: of the file or the link.
        inode: device and number of the file itself; equal ones are one file.
    """

    path: Path
    inode: tuple[int, int]


@dataclass(frozen=True)
class BrokenEntry:
    """A name that no file can be opened by.

    Attributes:
        path: of the name.
        reason: why, to follow the name in a sentence.
        leads_out: whether it is a link to something outside of the tree, which may be there.
        target: what a link says of its target.
    """

    path: Path
    reason: str
    leads_out: bool = False
    target: str = ""


@dataclass
class Folder:
    """The names directly in a folder.

    Attributes:
        path: of the folder.
        files: by name.
        broken: by name.
        folders: names of the folders in it.
    """

    path: Path
    files: dict[str, FileEntry] = field(default_factory=dict)
    broken: dict[str, BrokenEntry] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)

    def __contains__(self, name: str) -> bool:
        return name in self.files or name in self.broken or name in self.folders

    def problem(self, name: str) -> BrokenEntry | None:
        """Why no file can be opened by a name; None if one can, or there is nothing."""
        if name in self.folders:
            return BrokenEntry(self.path / name, "is not a regular file")
        return self.broken.get(name)


@dataclass
class Tree:
    """All that lies below a path.

    Attributes:
        root: the path.
        folders: in the order of a walk from the top, sorted by name.
        problems: paths that could not be listed, and why.
    """

    root: Path
    folders: list[Folder] = field(default_factory=list)
    problems: list[tuple[Path, str]] = field(default_factory=list)


def list_tree(root: Path) -> Tree:
    """List the names below a folder.

    Links to folders are not followed. What cannot be listed is a problem of its own, and the rest
    goes on. What lies beyond :data:`MAX_ENTRIES`, :data:`MAX_DEPTH` or :data:`MAX_SECONDS` is not
    listed.

    Raises:
        OSError: the folder itself cannot be found.
    """
    tree = Tree(root)
    inside = os.path.realpath(root, strict=True)
    pending = [(root, 0)]
    count = 0
    deadline = time.monotonic() + MAX_SECONDS
    limit = ""
    while pending and not limit:
        path, depth = pending.pop()
        if depth > MAX_DEPTH:
            tree.problems.append((path, f"lies deeper than {MAX_DEPTH} folders; not looked into"))
            continue
        folder = Folder(path)
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    count += 1
                    if count > MAX_ENTRIES:
                        limit = f"more than {MAX_ENTRIES} files and folders"
                    elif time.monotonic() > deadline:
                        limit = f"more names than can be listed in {MAX_SECONDS:g} s"
                    if limit:
                        break
                    if entry.is_dir(follow_symlinks=False):
                        folder.folders.add(entry.name)
                    else:
                        _add(folder, entry.name, inside, root)
        except OSError as error:
            tree.problems.append((path, f"cannot be read: {reason_of(error)}"))
        folder.files = dict(sorted(folder.files.items()))
        folder.broken = dict(sorted(folder.broken.items()))
        tree.folders.append(folder)
        if limit:
            tree.problems.append((root, f"{limit}; the rest was not looked at"))
        pending += [(path / name, depth + 1) for name in sorted(folder.folders, reverse=True)]
    return tree


def list_file(path: Path, names: tuple[str, ...]) -> Folder:
    """A file that the caller named, which may be a link to anywhere, with others of its folder.

    Args:
        path: the file.
        names: what else to look for beside it; links must stay in the folder.

    Raises:
        OSError: it is no file that can be opened.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe, a socket or a device", str(path))
    folder = Folder(path.parent)
    folder.files[path.name] = FileEntry(path, (status.st_dev, status.st_ino))
    inside = os.path.realpath(path.parent, strict=True)
    for name in names:
        if name == path.name or not os.path.lexists(path.parent / name):
            continue
        if stat.S_ISDIR(os.lstat(path.parent / name).st_mode):
            folder.folders.add(name)
        else:
            _add(folder, name, inside, path.parent)
    return folder


def _add(folder: Folder, name: str, inside: str, root: Path) -> None:
    """Put what a name that is no folder stands for into its folder."""
    path = folder.path / name
    try:
        found = _resolve(path, inside, root)
    except OSError as error:
        found = BrokenEntry(path, f"cannot be read: {reason_of(error)}")
    if isinstance(found, FileEntry):
        folder.files[name] = found
    elif found is not None:
        folder.broken[name] = found


def _resolve(path: Path, inside: str, root: Path) -> FileEntry | BrokenEntry | None:
    """What a name stands for; None for a link to a folder of the tree, which is met itself."""
    status = os.lstat(path)
    target = ""
    if stat.S_ISLNK(status.st_mode):
        target = os.readlink(path)
        try:
            os.stat(path)  # the system follows a few dozen links at most, Python any number
            real = os.path.realpath(path, strict=True)
        except OSError as error:
            reasons = {errno.ENOENT: "to nothing", errno.ELOOP: "that leads in a circle"}
            reason = reasons.get(error.errno, f"that cannot be followed: {reason_of(error)}")
            return BrokenEntry(path, f"is a link {reason}", target=target)
        if os.path.commonpath([inside, real]) != inside:
            return BrokenEntry(path, f"is a link that leads out of {root}", True, target)
        status = os.stat(real)
        if stat.S_ISDIR(status.st_mode):
            return None
    if not stat.S_ISREG(status.st_mode):
        return BrokenEntry(path, "is not a regular file")
    return FileEntry(path, (status.st_dev, status.st_ino))
