# SPDX-License-Identifier: Apache-2.0
"""Checks of PyTorch's zip archives before anything in them is read."""

from __future__ import annotations

import re
import struct
import zipfile
from typing import BinaryIO

from .regular_file import file_bytes

MAGIC = b"PK\x03\x04"
MAX_PICKLE_BYTES = 64 << 20
_MAX_DIRECTORY_BYTES = 32 << 20
_LOCAL_HEADER_BYTES = 30

_MEMBER = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id"
    r"|data/\d{1,30}"
)
_TORCHSCRIPT = re.compile(r"constants\.pkl|(code|extra)/.*|.*\.py|model\.json")


class ArchiveError(ValueError):
    """A zip archive that PyTorch did not write."""


class TorchScriptError(ArchiveError):
    """An archive of TorchScript, which holds code."""


def open_archive(stream: BinaryIO) -> tuple[zipfile.ZipFile, str]:
    """Open a zip archive that can only be what ``torch.save`` writes.

    Every member must be stored as it is, lie inside the file without overlapping another, and have
    a name that PyTorch gives, so that neither the expanded size nor the reader that looks at it
    can surprise.

    Args:
        stream: an open regular file.

    Returns:
        The archive, and the name of its only folder.

    Raises:
        TorchScriptError: a TorchScript archive.
        ArchiveError: not an archive of PyTorch.
    """
    size = file_bytes(stream)
    _check_directory(stream, size)
    try:
        archive = zipfile.ZipFile(stream)
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as error:
        raise ArchiveError(f"truncated or damaged zip archive: {error}") from None
    members = archive.infolist()
    if not members:
        raise ArchiveError("an empty zip archive")
    folders = {member.filename.partition("/")[0] for member in members}
    names = {member.filename.partition("/")[2]: member for member in members}
    if any(_TORCHSCRIPT.fullmatch(name) for name in names):
        raise TorchScriptError("a TorchScript archive; it holds code and is never loaded")
    if "data.pkl" not in names or len(folders) != 1:
        raise ArchiveError("a zip archive, but not one of PyTorch's (no data.pkl)")
    strange = next((name for name in names if not _MEMBER.fullmatch(name)), None)
    if strange is not None:
        raise ArchiveError(f"its zip archive holds {strange[:100]!r}, which PyTorch does not write")
    if len(names) != len(members) or len({name.lower() for name in names}) != len(members):
        raise ArchiveError("its zip archive holds two members of the same name")
    _check_members(members, size)
    if names["data.pkl"].file_size > MAX_PICKLE_BYTES:
        raise ArchiveError(f"its pickle is larger than {MAX_PICKLE_BYTES} bytes")
    return archive, folders.pop()


def _check_directory(stream: BinaryIO, size: int) -> None:
    """Refuse a directory too large to be listed, and anything behind the archive's end.

    Readers differ in where they look for the directory if a comment or other data follows it.
    """
    stream.seek(max(0, size - 98))
    tail = stream.read(98)
    stream.seek(0)
    end = tail[-22:]
    if len(end) < 22 or end[:4] != b"PK\x05\x06":
        raise ArchiveError("truncated zip archive, or one with data behind its end")
    directory_bytes, offset = struct.unpack("<II", end[12:20])
    if (directory_bytes == 0xFFFFFFFF or offset == 0xFFFFFFFF) and tail[:4] == b"PK\x06\x06":
        directory_bytes = struct.unpack("<Q", tail[40:48])[0]
    if directory_bytes > _MAX_DIRECTORY_BYTES:
        raise ArchiveError(f"the directory of its zip archive has {directory_bytes} bytes")


def _check_members(members: list[zipfile.ZipInfo], size: int) -> None:
    position = 0
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size:
            raise ArchiveError(
                f"its zip archive is compressed ({member.compress_size} bytes expand to "
                f"{member.file_size}); PyTorch's are not"
            )
        if member.flag_bits & 0x1:
            raise ArchiveError("its zip archive is encrypted")
        if member.header_offset < position:
            raise ArchiveError("members of its zip archive overlap")
        position = member.header_offset + _LOCAL_HEADER_BYTES + member.file_size
    if position > size:
        raise ArchiveError("truncated zip archive")
