# SPDX-License-Identifier: Apache-2.0
"""The table of contents of a PyTorch zip archive, if every reader of zip files must see the same.

A zip file says everything twice, in a directory at its end and in a header before each member, and
readers differ in which they believe, where they look for the directory and how they compare names.
So nothing is accepted that ``torch.save`` does not write: members lie one behind the other without
a gap, uncompressed, and both descriptions of each agree.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from .regular_file import file_bytes, read_at

MAGIC = b"PK\x03\x04"
MAX_PICKLE_BYTES = 64 << 20
_MAX_DIRECTORY_BYTES = 32 << 20

_LOCAL = struct.Struct("<4s5H3I2H")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_DESCRIPTOR = struct.Struct("<4s3I")
_DESCRIPTOR64 = struct.Struct("<4sI2Q")
_MAX32 = 0xFFFFFFFF
_ENCRYPTED, _DESCRIBED_BEHIND, _UTF8 = 0x1, 0x8, 0x800
# Readers that know of folders take a member with this attribute for one, whatever it holds.
_FOLDER_ATTRIBUTE = 0x10

_PICKLE = "data.pkl"
_STORAGE = re.compile(r"data/\d{1,30}")
_TORCHSCRIPT = re.compile(r"constants\.pkl|(code|extra)/.*|.*\.py|model\.json")
# What the other members must say. Older releases of PyTorch write fewer of them.
_RECORDS = {
    "version": rb"([1-9]|10)\n?",
    "byteorder": rb"little",
    ".data/serialization_id": rb"\d{1,100}",
    ".format_version": rb"1",
    ".storage_alignment": rb"\d{1,4}",
}


class ArchiveError(ValueError):
    """A zip archive that PyTorch did not write."""


class TorchScriptError(ArchiveError):
    """An archive of TorchScript, which holds code."""


class Member(NamedTuple):
    """Where a member is.

    Attributes:
        start: offset of its header in the file.
        offset: of the first byte of its content.
        size: bytes of its content.
        crc: their CRC-32; 0 if the writer did not compute it.
    """

    start: int
    offset: int
    size: int
    crc: int


@dataclass(frozen=True)
class Archive:
    """A checked archive.

    Attributes:
        pickle: the member that says what the archive holds.
        storages: the numbers of tensors, by key, in the order of the file.
        computable: whether PyTorch may compute the places of the storages from the order in which
            the pickle names them, instead of looking them up.
    """

    pickle: Member
    storages: Mapping[str, Member]
    computable: bool


def open_archive(stream: BinaryIO) -> Archive:
    """Read the directory of a zip archive that can only be what ``torch.save`` writes.

    Args:
        stream: an open regular file.

    Raises:
        TorchScriptError: a TorchScript archive.
        ArchiveError: not an archive of PyTorch.
    """
    size = file_bytes(stream)
    members = _walk(stream, *_directory(stream, size))
    folders = {name.partition("/")[0] for name in members}
    named = {name.partition("/")[2]: member for name, member in members.items()}
    if any(_TORCHSCRIPT.fullmatch(name) for name in named):
        raise TorchScriptError("a TorchScript archive; it holds code and is never loaded")
    if _PICKLE not in named or len(folders) != 1:
        raise ArchiveError(f"a zip archive, but not one of PyTorch's (no {_PICKLE})")
    if not "".join(folders).strip() or not "".join(folders).isprintable():
        raise ArchiveError("the folder in its zip archive has no name")
    for name in named:
        if name != _PICKLE and name not in _RECORDS and not _STORAGE.fullmatch(name):
            raise ArchiveError(
                f"its zip archive holds {name[:100]!r}, which PyTorch does not write"
            )
    if named[_PICKLE].size > MAX_PICKLE_BYTES:
        raise ArchiveError(f"its pickle is larger than {MAX_PICKLE_BYTES} bytes")
    for name, expected in _RECORDS.items():
        if name in named:
            _check_record(stream, name, named[name], expected)
    storages = {name: member for name, member in members.items() if "/data/" in name}
    computable = ".format_version" in named
    if computable:
        alignment = named.get(".storage_alignment")
        _check_places(storages, int(read_member(stream, alignment)) if alignment else 64)
    by_key = {name.rpartition("/")[2]: member for name, member in storages.items()}
    return Archive(named[_PICKLE], by_key, computable)


def read_member(stream: BinaryIO, member: Member) -> bytes:
    """The content of a member.

    Raises:
        ArchiveError: it is not what was written.
    """
    content = read_at(stream, member.offset, member.size)
    if member.crc and zlib.crc32(content) != member.crc:
        raise ArchiveError("damaged zip archive: a member has another checksum")
    return content


def _check_record(stream: BinaryIO, name: str, member: Member, expected: bytes) -> None:
    content = read_member(stream, member) if member.size <= 100 else b"..."
    if not re.fullmatch(expected, content):
        what = ascii(content.decode("latin-1"))[1:-1]
        raise ArchiveError(f"its record {name} says {what!r}, which is not read here")


def _check_places(storages: Mapping[str, Member], alignment: int) -> None:
    """Check that storages lie where PyTorch computes that they lie, each from the one before."""
    expected = next((member.start for member in storages.values()), 0)
    for name, member in storages.items():
        wide_size, wide_start = member.size >= _MAX32, member.start >= _MAX32
        start = member.start + _LOCAL.size + len(name.encode()) + 4
        if wide_size or wide_start:
            start += 4 + 16 * wide_size + 8 * wide_start
        if member.start != expected or member.offset != -(-start // max(alignment, 1)) * alignment:
            raise ArchiveError("storages in its zip archive are not where PyTorch puts them")
        descriptor = _DESCRIPTOR64 if wide_size or wide_start else _DESCRIPTOR
        expected = member.offset + member.size + (descriptor.size if member.size else 0)


def _directory(stream: BinaryIO, size: int) -> tuple[bytes, int, int]:
    """The directory of an archive, the number of its entries, and where it begins.

    Readers differ in where they look for the directory if a comment or other data follows it.
    """
    position = size - _END.size
    end = read_at(stream, position, _END.size) if position >= 0 else b""
    if end[:4] != b"PK\x05\x06":
        raise ArchiveError("truncated zip archive, or one with data behind its end")
    _, disk, first_disk, here, count, length, offset, comment = _END.unpack(end)
    if disk or first_disk or here != count or comment:
        raise ArchiveError("its zip archive is in parts, or has a comment")
    locator = read_at(stream, max(0, position - _LOCATOR.size), _LOCATOR.size)
    if locator[:4] == b"PK\x06\x07":
        position -= _LOCATOR.size + _END64.size
        end64 = _END64.unpack(read_at(stream, max(0, position), _END64.size))
        wide = end64[7:]
        narrow = (min(wide[0], 0xFFFF), min(wide[1], _MAX32), min(wide[2], _MAX32))
        if (
            end64[:2] != (b"PK\x06\x06", _END64.size - 12)
            or end64[4:7] != (0, 0, wide[0])
            or _LOCATOR.unpack(locator)[1:] != (0, position, 1)
            or narrow != (count, length, offset)
        ):
            raise ArchiveError("the two ends of its zip archive contradict each other")
        count, length, offset = wide
    if length > _MAX_DIRECTORY_BYTES:
        raise ArchiveError(f"the directory of its zip archive has {length} bytes")
    if offset + length != position:
        raise ArchiveError("damaged zip archive: its directory is not at its end")
    return read_at(stream, offset, length), count, offset


def _walk(stream: BinaryIO, directory: bytes, count: int, end: int) -> dict[str, Member]:
    """The members by name, which lie one behind the other from the start of the file to ``end``."""
    members: dict[str, Member] = {}
    seen: set[str] = set()
    entry = cursor = 0
    while entry < len(directory):
        name, entry, fields = _read_entry(directory, entry)
        if name.lower() in seen:
            raise ArchiveError("its zip archive holds two members of the same name")
        seen.add(name.lower())
        if fields.start != cursor:
            raise ArchiveError("members of its zip archive overlap, or leave gaps between them")
        members[name] = _read_header(stream, name, fields, end)
        cursor = (
            members[name].offset + fields.size + _descriptor_bytes(stream, members[name], fields)
        )
    if cursor != end or len(members) != count:
        raise ArchiveError("damaged zip archive: its directory lists other members than it holds")
    return members


class _Fields(NamedTuple):
    """What the directory says of a member."""

    flags: int
    crc: int
    size: int
    start: int


def _read_entry(directory: bytes, position: int) -> tuple[str, int, _Fields]:
    """Name and fields of the directory's entry at ``position``, and where the next one begins."""
    try:
        entry = _ENTRY.unpack_from(directory, position)
    except struct.error:
        raise ArchiveError("damaged zip archive: its directory is cut off") from None
    signature, _, _, flags, method, _, _, crc, packed, size, *rest = entry
    name_bytes, extra_bytes, comment_bytes, disk, _, attributes, start = rest
    position += _ENTRY.size
    raw = directory[position : position + name_bytes]
    extra = directory[position + name_bytes : position + name_bytes + extra_bytes]
    if signature != b"PK\x01\x02" or len(raw) + len(extra) != name_bytes + extra_bytes:
        raise ArchiveError("damaged zip archive: its directory is cut off")
    if flags & _ENCRYPTED:
        raise ArchiveError("its zip archive is encrypted")
    if method or packed != size:
        raise ArchiveError(
            f"its zip archive is compressed ({packed} bytes expand to {size}); PyTorch's are not"
        )
    if flags & ~(_DESCRIBED_BEHIND | _UTF8) or comment_bytes or disk:
        raise ArchiveError("its zip archive has members that PyTorch does not write")
    if attributes & _FOLDER_ATTRIBUTE:
        raise ArchiveError("its zip archive calls a member a folder")
    try:
        name = raw.decode("utf-8" if flags & _UTF8 else "ascii")
    except UnicodeDecodeError:
        raise ArchiveError("its zip archive has a name that is no text") from None
    # Some readers end a name at a null byte, others do not.
    if "\0" in name or "\\" in name:
        raise ArchiveError(f"its zip archive holds {name[:100]!r}, which PyTorch does not write")
    packed, size, start = _wide(extra, packed, size, start)
    return name, position + name_bytes + extra_bytes, _Fields(flags, crc, size, start)


def _wide(extra: bytes, packed: int, size: int, start: int) -> tuple[int, int, int]:
    """Sizes and place of a member with those that 32 bits cannot hold taken from ``extra``."""
    values = [size, packed, start]  # in this order
    wide = [index for index, value in enumerate(values) if value == _MAX32]
    expected = struct.pack("<2H", 1, 8 * len(wide)) if wide else b""
    if extra[:4] != expected or len(extra) != len(expected) + 8 * len(wide):
        raise ArchiveError("its zip archive has members that PyTorch does not write")
    for number, index in enumerate(wide):
        values[index] = struct.unpack_from("<Q", extra, 4 + 8 * number)[0]
    if values[0] != values[1]:
        raise ArchiveError("its zip archive is compressed; PyTorch's are not")
    return values[1], values[0], values[2]


def _read_header(stream: BinaryIO, name: str, fields: _Fields, end: int) -> Member:
    """The member whose header, where the directory says, must repeat what the directory says."""
    header = _LOCAL.unpack(read_at(stream, fields.start, _LOCAL.size))
    signature, _, flags, method, _, _, crc, packed, size, name_bytes, extra_bytes = header
    offset = fields.start + _LOCAL.size + name_bytes + extra_bytes
    if offset + fields.size > end:
        raise ArchiveError("truncated zip archive")
    narrow = min(fields.size, _MAX32)
    described = (0, 0, 0) if fields.flags & _DESCRIBED_BEHIND else (fields.crc, narrow, narrow)
    if (
        signature != MAGIC
        or (flags, method) != (fields.flags, 0)
        or (crc, packed, size) != described
        or read_at(stream, fields.start + _LOCAL.size, name_bytes) != name.encode()
    ):
        raise ArchiveError("a header in its zip archive contradicts the directory")
    return Member(fields.start, offset, fields.size, fields.crc)


def _descriptor_bytes(stream: BinaryIO, member: Member, fields: _Fields) -> int:
    """Length of what follows a member, which must repeat what the directory says."""
    if not fields.flags & _DESCRIBED_BEHIND:
        return 0
    wide = fields.size >= _MAX32 or fields.start >= _MAX32
    layout = _DESCRIPTOR64 if wide else _DESCRIPTOR
    found = read_at(stream, member.offset + member.size, layout.size)
    if layout.unpack(found) != (b"PK\x07\x08", fields.crc, fields.size, fields.size):
        raise ArchiveError("a header in its zip archive contradicts the directory")
    return layout.size
