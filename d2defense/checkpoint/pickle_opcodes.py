# SPDX-License-Identifier: Apache-2.0
"""The opcodes of a pickle, one after another, as every reader of pickles sees them.

Python has several readers of pickles, and PyTorch one more. They agree on what an honest pickler
writes and differ on much else: the C one, for example, forgets what is left of a frame when an
opcode's argument reaches beyond its end, and goes on elsewhere. So only what an honest pickler
writes passes here: opcodes of the declared protocol, whole inside a frame or outside, and nothing
behind the last one.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NamedTuple

MAX_OPCODES = 2_000_000
#: Bytes of all texts and short values of one pickle. Arrays are not read; see :class:`Blob`.
MAX_READ_BYTES = 1 << 30
#: Strings of bytes that are longer stay in the file.
BLOB_BYTES = 1 << 10
_MAX_LINE = 200
_PROTO = 0x80


class PickleError(ValueError):
    """A pickle that is broken, or of no use as weights."""


class UnsafePickleError(PickleError):
    """A pickle that could run code, or that readers understand in two ways."""


@dataclass(frozen=True)
class Blob:
    """Bytes that stay in the file until somebody needs them.

    Attributes:
        offset: of the first in the file.
        length: their number.
    """

    offset: int
    length: int

    def __len__(self) -> int:
        return self.length


@dataclass(frozen=True)
class Dialect:
    """What the writers of one format use of the pickle language.

    Attributes:
        protocols: the versions that they write.
        byte_strings: whether there are strings of Python 2, which are read as Latin-1.
    """

    protocols: frozenset[int]
    byte_strings: bool


class _Bytes:
    """A stream of which no more is read than there is, nor than the budget allows."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream = stream
        self._size = size
        self._budget = MAX_READ_BYTES
        self.position = stream.tell()

    @property
    def left(self) -> int:
        """Bytes up to the end."""
        return self._size - self.position

    def read(self, length: int) -> bytes:
        """The next bytes, all of them."""
        self._reserve(length)
        self._budget -= length
        if self._budget < 0:
            raise PickleError(f"its pickle has more than {MAX_READ_BYTES} bytes of text")
        content = self._stream.read(length)
        if len(content) != length:
            raise PickleError("truncated")
        self.position += length
        return content

    def blob(self, length: int) -> bytes | Blob:
        """The next bytes, or where they are."""
        if length <= BLOB_BYTES:
            return self.read(length)
        self._reserve(length)
        found = Blob(self.position, length)
        self.position += length
        self._stream.seek(self.position)
        return found

    def line(self) -> str:
        """A line of ASCII, without its end."""
        content = self._stream.readline(min(_MAX_LINE, self.left))
        self.position += len(content)
        if not content.endswith(b"\n") or not content.isascii():
            raise UnsafePickleError("its pickle names something by no plain name")
        return content[:-1].decode("ascii")

    def number(self, layout: str) -> Any:
        """The next number of this layout (:mod:`struct`)."""
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

    def _reserve(self, length: int) -> None:
        if not 0 <= length <= self.left:
            raise PickleError(
                f"its pickle is truncated: {length} bytes should follow, and {self.left} do"
            )


def _number(layout: str) -> Callable[[_Bytes], Any]:
    return lambda source: source.number(layout)


def _text(layout: str) -> Callable[[_Bytes], str]:
    return lambda source: source.read(source.number(layout)).decode("utf-8", "surrogatepass")


def _byte_string(layout: str) -> Callable[[_Bytes], str | Blob]:
    def read(source: _Bytes) -> str | Blob:
        content = source.blob(source.number(layout))
        return content if isinstance(content, Blob) else content.decode("latin-1")

    return read


def _bytes(layout: str) -> Callable[[_Bytes], bytes | Blob]:
    return lambda source: source.blob(source.number(layout))


def _integer(source: _Bytes) -> int:
    return int.from_bytes(source.read(source.number("<B")), "little", signed=True)


class _Opcode(NamedTuple):
    """An opcode that honest picklers write.

    Attributes:
        name: that of :mod:`pickletools`.
        first, last: the protocols whose picklers write it.
        argument: reads its argument.
    """

    name: str
    first: int
    last: int
    argument: Callable[[_Bytes], Any] | None = None


_OPCODES: dict[bytes, _Opcode] = {
    b"(": _Opcode("MARK", 2, 5),
    b".": _Opcode("STOP", 2, 5),
    b"N": _Opcode("NONE", 2, 5),
    b"\x88": _Opcode("NEWTRUE", 2, 5),
    b"\x89": _Opcode("NEWFALSE", 2, 5),
    b"J": _Opcode("BININT", 2, 5, _number("<i")),
    b"K": _Opcode("BININT1", 2, 5, _number("<B")),
    b"M": _Opcode("BININT2", 2, 5, _number("<H")),
    b"\x8a": _Opcode("LONG1", 2, 5, _integer),
    b"G": _Opcode("BINFLOAT", 2, 5, _number(">d")),
    b"U": _Opcode("SHORT_BINSTRING", 2, 2, _byte_string("<B")),
    b"T": _Opcode("BINSTRING", 2, 2, _byte_string("<i")),
    b"C": _Opcode("SHORT_BINBYTES", 3, 5, _bytes("<B")),
    b"B": _Opcode("BINBYTES", 3, 5, _bytes("<I")),
    b"\x96": _Opcode("BYTEARRAY8", 5, 5, _bytes("<Q")),
    b"X": _Opcode("BINUNICODE", 2, 5, _text("<I")),
    b"\x8c": _Opcode("SHORT_BINUNICODE", 4, 5, _text("<B")),
    b")": _Opcode("EMPTY_TUPLE", 2, 5),
    b"\x85": _Opcode("TUPLE1", 2, 5),
    b"\x86": _Opcode("TUPLE2", 2, 5),
    b"\x87": _Opcode("TUPLE3", 2, 5),
    b"t": _Opcode("TUPLE", 2, 5),
    b"]": _Opcode("EMPTY_LIST", 2, 5),
    b"a": _Opcode("APPEND", 2, 5),
    b"e": _Opcode("APPENDS", 2, 5),
    b"}": _Opcode("EMPTY_DICT", 2, 5),
    b"s": _Opcode("SETITEM", 2, 5),
    b"u": _Opcode("SETITEMS", 2, 5),
    b"\x8f": _Opcode("EMPTY_SET", 4, 5),
    b"\x90": _Opcode("ADDITEMS", 4, 5),
    b"q": _Opcode("BINPUT", 2, 3, _number("<B")),
    b"r": _Opcode("LONG_BINPUT", 2, 3, _number("<I")),
    b"\x94": _Opcode("MEMOIZE", 4, 5),
    b"h": _Opcode("BINGET", 2, 5, _number("<B")),
    b"j": _Opcode("LONG_BINGET", 2, 5, _number("<I")),
    b"c": _Opcode("GLOBAL", 2, 3, lambda source: (source.line(), source.line())),
    b"\x93": _Opcode("STACK_GLOBAL", 4, 5),
    b"R": _Opcode("REDUCE", 2, 5),
    b"b": _Opcode("BUILD", 2, 5),
    b"Q": _Opcode("BINPERSID", 2, 5),
    b"\x95": _Opcode("FRAME", 4, 5, _number("<Q")),
}
_BYTE_STRINGS = ("SHORT_BINSTRING", "BINSTRING")


def read_opcodes(stream: IO[bytes], size: int, dialect: Dialect) -> Iterator[tuple[str, Any]]:
    """Name and argument of each opcode from the stream's position to its end at ``size``.

    PROTO and FRAME are checked and left out; STOP is the last one. A name is a pair of strings.
    Strings of bytes longer than ``BLOB_BYTES`` come as :class:`Blob`.

    Raises:
        UnsafePickleError: something that no writer of this dialect writes.
        PickleError: truncated, or too long.
    """
    source = _Bytes(stream, size)
    protocol = _read_protocol(source, dialect)
    frame_end: int | None = None
    for _ in range(MAX_OPCODES):
        code = source.read(1)
        opcode = _OPCODES.get(code)
        if opcode is None or (opcode.name in _BYTE_STRINGS and not dialect.byte_strings):
            raise UnsafePickleError(
                f"its pickle uses the opcode {_name(code)}; it was not executed"
            )
        name = opcode.name
        if not opcode.first <= protocol <= opcode.last:
            raise UnsafePickleError(
                f"its pickle uses the opcode {name}, which is none of its protocol {protocol}; it "
                "was not executed"
            )
        argument = opcode.argument and opcode.argument(source)
        if name == "FRAME":
            if frame_end is not None or not 0 < argument <= source.left:
                raise UnsafePickleError("frames of its pickle nest, or reach beyond its end")
            frame_end = source.position + argument
            continue
        if frame_end is not None and source.position >= frame_end:
            if source.position > frame_end:
                raise UnsafePickleError(
                    f"a frame of its pickle ends inside the opcode {name}; readers of pickles "
                    "understand that in two ways"
                )
            frame_end = None
        if name == "STOP" and source.left:
            raise UnsafePickleError(f"{source.left} bytes follow the end of its pickle")
        yield name, argument
        if name == "STOP":
            return
    raise PickleError(f"its pickle has more than {MAX_OPCODES} opcodes")


def _read_protocol(source: _Bytes, dialect: Dialect) -> int:
    """The protocol that a pickle begins with."""
    if not source.left:
        raise PickleError("the file is empty")
    start = source.read(min(2, source.left))
    if len(start) < 2 or start[0] != _PROTO:
        raise PickleError("not a pickle of protocol 2 or higher")
    if start[1] not in dialect.protocols:
        known = ", ".join(map(str, sorted(dialect.protocols)))
        raise PickleError(f"a pickle of protocol {start[1]}; known here are {known}")
    return start[1]


def _name(code: bytes) -> str:
    known = pickletools.code2op.get(code.decode("latin-1"))
    return known.name if known else f"0x{code.hex()}"
