# SPDX-License-Identifier: Apache-2.0
"""Messages between a confined process and the one that trusts it with nothing.

A message is a JSON object and bytes. Nothing that comes from a confined process is unpickled.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

_LENGTHS = struct.Struct("!IQ")
#: Longest JSON text and longest bytes of one message.
MAX_BYTES = 64 << 20


class MessageError(ValueError):
    """What was sent is no message."""


def encode(content: dict[str, Any], blob: bytes = b"") -> bytes:
    """The bytes of one message.

    Raises:
        ValueError: NaN or infinity in ``content``, or the message is too long.
    """
    text = json.dumps(content, allow_nan=False).encode("utf-8")
    if max(len(text), len(blob)) > MAX_BYTES:
        raise ValueError(f"a message of more than {MAX_BYTES} bytes")
    return _LENGTHS.pack(len(text), len(blob)) + text + blob


class Decoder:
    """Cuts a stream of bytes into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
        """The messages that ``data`` completes.

        Raises:
            MessageError: the stream holds something else.
        """
        self._buffer += data
        while len(self._buffer) >= _LENGTHS.size:
            text_length, blob_length = _LENGTHS.unpack_from(self._buffer)
            if max(text_length, blob_length) > MAX_BYTES:
                raise MessageError("a message is too long")
            middle = _LENGTHS.size + text_length
            end = middle + blob_length
            if len(self._buffer) < end:
                return
            try:
                content = json.loads(self._buffer[_LENGTHS.size : middle].decode("utf-8"))
            except (ValueError, RecursionError) as error:
                raise MessageError(f"a message is not JSON: {error}") from None
            blob = bytes(self._buffer[middle:end])
            del self._buffer[:end]
            if not isinstance(content, dict):
                raise MessageError("a message is no JSON object")
            yield content, blob

    @property
    def is_empty(self) -> bool:
        """Whether no message is cut off."""
        return not self._buffer


class Channel:
    """The confined process's end: it can send, and that is all."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, content: dict[str, Any], blob: bytes = b"") -> None:
        """Send one message; see :func:`encode`."""
        self._connection.sendall(encode(content, blob))
