# SPDX-License-Identifier: Apache-2.0
"""What a file is, by its name and its bytes: weights, another kind of model, or neither.

A file counts as weights if one of the usual readers could load weights from it, whatever its name:
Detectron2 reads any name but ``*.pkl`` with ``torch.load``. It also counts if its name says so,
unless its bytes prove something else.
"""

from __future__ import annotations

import bz2
import hashlib
import io
import lzma
import pickletools
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from .errors import CheckpointError
from .regular_file import MAX_WEIGHTS_BYTES, file_bytes, open_regular, read_at, reason_of
from .weights import WEIGHTS_SUFFIXES, weight_sets
from .zip_archive import MAGIC
from .zoo_pickle import read_zoo_pickle

WEIGHTS = "weights"
#: A model that could be deployed and cannot be scanned.
FOREIGN = "foreign"
OTHER = "other"
#: What a file may be.
KINDS = (WEIGHTS, FOREIGN, OTHER)

_HEAD_BYTES = 4096
_SAMPLE_BYTES = 64 << 10
_MAX_DIRECTORY_BYTES = 32 << 20
_MAX_ZIP_ENDS = 8
_MAX_TAR_MEMBERS = 100_000
# Of a compressed file.
_PACKED_BYTES = 1 << 20
_UNPACKED_BYTES = 4 << 20

# Endings, also in the middle of a name: model.pth.tar, model_final.pth?dl=1, model.ckpt.bak.
_WEIGHTS_NAME = re.compile(
    r"\.(pth|pt|pyth|pkl|ckpt|safetensors)(?![a-z0-9])|(model|weight|checkpoint|ckpt).*\.bin$",
    re.IGNORECASE,
)
_FOREIGN = {
    ".onnx": "an ONNX model; its modules cannot be told apart",
    ".pb": "a model of another program; its modules cannot be told apart",
    ".tflite": "a model of another program; its modules cannot be told apart",
    ".engine": "a model of another program; its modules cannot be told apart",
    ".caffemodel": "a model of another program; its modules cannot be told apart",
}
_TORCHSCRIPT = "a TorchScript archive; it holds code and is never loaded"
_FOREIGN_BY_NAME = {
    **_FOREIGN,
    ".ts": _TORCHSCRIPT,
    ".torchscript": _TORCHSCRIPT,
    ".py": "a Python file; it is never executed",
}

# Detectron2 writes them while it evaluates: as many as there are detections on a whole dataset.
_PREDICTIONS_NAME = "instances_predictions.pth"
# The number that PyTorch's container of before 1.6 begins with.
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_PICKLE = re.compile(rb"\x80[\x02-\x05](.)", re.DOTALL)
_OPCODES = frozenset(ord(opcode.code) for opcode in pickletools.opcodes)
# What Python unpacks, and what it does not: 7z, RAR, Zstandard.
_COMPRESSED = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(memlimit=256 << 20),
}
_CLOSED = (b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd")
_INNER_WEIGHTS = re.compile(rb"\.(pth|pt|pyth|pkl|ckpt|safetensors)(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class FileKind:
    """What a file is.

    Attributes:
        kind: one of :data:`KINDS`.
        reason: why a foreign model cannot be scanned, or what else should be said of the file.
        members: sets of weights in it (:func:`weight_sets`).
        sample: digest of its length and of some of its bytes, of weights: files whose samples
            differ are different.
    """

    kind: str
    reason: str = ""
    members: tuple[str | None, ...] = (None,)
    sample: str = ""


def looks_like_weights(name: str) -> bool:
    """Whether a file of this name is one of weights, as far as names tell."""
    return _WEIGHTS_NAME.search(name) is not None


def foreign_by_name(path: Path) -> str | None:
    """Why a file of this name is no checkpoint, where the name alone tells."""
    return _FOREIGN_BY_NAME.get(path.suffix.lower())


def name_class(name: str) -> tuple[str, bool]:
    """What :func:`kind_of` takes of a name: two of one class and one content are of one kind."""
    suffix = name if name == _PREDICTIONS_NAME else Path(name).suffix
    known = (_PREDICTIONS_NAME, *WEIGHTS_SUFFIXES, *_FOREIGN_BY_NAME)
    return suffix if suffix.lower() in known else "", looks_like_weights(name)


def kind_of(path: Path) -> FileKind:
    """Look at a file: at its whole structure if it is of weights, else at its first bytes.

    Raises:
        CheckpointError: it cannot be opened.
    """
    with open_regular(path) as stream:
        try:
            size, head = file_bytes(stream), stream.read(_HEAD_BYTES)
            found = _by_bytes(stream, head, size, path.suffix.lower())
            if found is None or found.kind == OTHER:
                named = _by_name(path, head, size)
                found = named if found is None or named.kind != OTHER else found
            if found.kind == WEIGHTS:
                if size > MAX_WEIGHTS_BYTES:
                    return FileKind(
                        FOREIGN, f"has {size} bytes; at most {MAX_WEIGHTS_BYTES} are read"
                    )
                sample = _sample(stream, size)
        except (OSError, ValueError) as error:
            raise CheckpointError(path, f"cannot be read: {reason_of(error)}") from None
    if found.kind != WEIGHTS:
        return found
    return _with_members(path, sample, is_pickle=_is_pickle(head) and not _is_legacy(head))


def _with_members(path: Path, sample: str, is_pickle: bool) -> FileKind:
    """What a file that looks like weights is, by its structure."""
    try:
        # Whatever its name, a bare pickle may be of something else.
        members = read_zoo_pickle(path).names if is_pickle else weight_sets(path)
    except CheckpointError as error:
        too_many = path.name == _PREDICTIONS_NAME and "opcodes" in error.reason
        if too_many and not _has_storages(path):
            return FileKind(OTHER, f"predictions by its name, not looked through: {error.reason}")
        # What is wrong is said where it is opened to be scanned.
        return FileKind(WEIGHTS, sample=sample)
    return FileKind(WEIGHTS, members=members, sample=sample) if members else FileKind(OTHER)


def _has_storages(path: Path) -> bool:
    """Whether an archive of PyTorch holds tensors, which predictions do without."""
    with open_regular(path) as stream:
        names = _zip_directory(stream, file_bytes(stream))
    return not names or b"/data/" in names.lower()


def _by_name(path: Path, head: bytes, size: int) -> FileKind:
    reason = _FOREIGN.get(path.suffix.lower())
    if reason is not None and size and not _is_text(head):
        return FileKind(FOREIGN, reason)
    ends_so = path.suffix.lower() in WEIGHTS_SUFFIXES
    # Beside weights lie texts about them: model.pth.sha256.
    if ends_so or (looks_like_weights(path.name) and not _is_text(head)):
        return FileKind(WEIGHTS)
    return FileKind(OTHER)


def _by_bytes(stream: BinaryIO, head: bytes, size: int, suffix: str) -> FileKind | None:
    """What the bytes say; None if they say nothing."""
    if head.startswith(MAGIC):
        return _zip(stream, head, size, suffix)
    if _is_pickle(head) or _is_legacy(head) or _is_safetensors(head, size):
        return FileKind(WEIGHTS)
    if head[257:262] == b"ustar":
        return _tar(stream, size)
    if any(head.startswith(magic) for magic in _COMPRESSED):
        return _compressed(stream, head)
    if any(head.startswith(magic) for magic in _CLOSED):
        return FileKind(OTHER, "a compressed archive; not looked into")
    return None


def _compressed(stream: BinaryIO, head: bytes) -> FileKind | None:
    """What the beginning of a compressed file says, of which little is unpacked."""
    unpack = next(make() for magic, make in _COMPRESSED.items() if head.startswith(magic))
    stream.seek(0)
    try:
        content = unpack.decompress(stream.read(_PACKED_BYTES), _UNPACKED_BYTES)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return None
    if any(content.startswith(magic) for magic in _COMPRESSED):
        return FileKind(OTHER, "a compressed file in a compressed file; not looked into")
    inner = _by_bytes(io.BytesIO(content), content[:_HEAD_BYTES], len(content), "")
    if inner is not None and inner.kind != OTHER:
        return FileKind(FOREIGN, "a compressed file that holds weights; unpack it")
    if content[257:262] == b"ustar" or content.startswith(MAGIC):
        return FileKind(OTHER, "a compressed archive; only its beginning was looked at")
    return inner


def _zip(stream: BinaryIO, head: bytes, size: int, suffix: str) -> FileKind | None:
    if suffix in (".ts", ".torchscript"):
        return FileKind(FOREIGN, _TORCHSCRIPT)
    # PyTorch writes its pickle first, and finds it in any case of letters.
    if b"/data.pkl" in head.lower():
        return FileKind(WEIGHTS)
    names = _zip_directory(stream, size)
    if names is None:
        return FileKind(FOREIGN, "a zip archive with too many members to be looked through")
    if b"/data.pkl" in names.lower():
        return FileKind(WEIGHTS)
    return _packed(names)


def _zip_directory(stream: BinaryIO, size: int) -> bytes | None:
    """The directory of a zip archive, wherever a reader may look for it.

    Returns:
        Its bytes, empty if there is none; None if it is too large, or there are too many.
    """
    start = max(0, size - (64 << 10) - 98)
    tail = read_at(stream, start, size - start)
    # Readers differ in which end they take where a comment holds another one.
    ends = [m.start() for m in re.finditer(rb"PK\x05\x06", tail) if m.start() + 22 <= len(tail)]
    places = []
    for end in ends[-_MAX_ZIP_ENDS:]:
        places.append(struct.unpack("<II", tail[end + 12 : end + 20]))
        if tail[max(0, end - 20) : end].startswith(b"PK\x06\x07"):
            (offset,) = struct.unpack("<Q", tail[end - 12 : end - 4])
            if offset + 56 <= size:
                places.append(struct.unpack("<QQ", read_at(stream, offset, 56)[40:]))
    places = [(length, offset) for length, offset in places if length + offset <= size]
    if len(ends) > _MAX_ZIP_ENDS or sum(length for length, _ in places) > _MAX_DIRECTORY_BYTES:
        return None
    return b"".join(read_at(stream, offset, length) for length, offset in places)


def _tar(stream: BinaryIO, size: int) -> FileKind | None:
    names = b"\n".join(_tar_names(stream, size))
    if re.search(rb"^(\./)?(storages|tensors|pickle)$", names, re.MULTILINE):
        return FileKind(WEIGHTS)
    return _packed(names)


def _tar_names(stream: BinaryIO, size: int) -> Iterator[bytes]:
    position = 0
    for _ in range(_MAX_TAR_MEMBERS):
        if position + 512 > size:
            return
        stream.seek(position)
        header = stream.read(512)
        digits = header[124:136].strip(b" \0")
        if not re.fullmatch(rb"[0-7]{1,12}", digits):
            return
        length = int(digits, 8)
        if header[156:157] in (b"L", b"x"):  # a long name instead of a file
            yield stream.read(min(length, _HEAD_BYTES)).strip(b"\0")
        yield header[:100].strip(b"\0")
        position += 512 + (length + 511) // 512 * 512


def _packed(names: bytes) -> FileKind | None:
    if _INNER_WEIGHTS.search(names):
        return FileKind(FOREIGN, "an archive that holds weights; unpack it")
    return None


def _is_pickle(head: bytes) -> bool:
    match = _PICKLE.match(head)
    return match is not None and match[1][0] in _OPCODES


def _is_legacy(head: bytes) -> bool:
    """Whether PyTorch's reader of files of before 1.6 takes a file for one, in any spelling."""
    try:
        return any(
            argument == _LEGACY_MAGIC for _, argument, _ in pickletools.genops(io.BytesIO(head))
        )
    except Exception:  # it fails in many ways on what is no pickle
        return False


def _is_safetensors(head: bytes, size: int) -> bool:
    return (
        len(head) > 9
        and struct.unpack("<Q", head[:8])[0] <= size - 8
        and head[8:9] == b"{"
        and (b"data_offsets" in head or b"__metadata__" in head)
    )


def _is_text(head: bytes) -> bool:
    """Whether a file begins as a text of at least one character."""
    text = head.decode("utf-8", errors="replace")[:-4] if len(head) > 8 else head.decode("latin-1")
    return bool(text) and all(c.isprintable() or c in "\r\n\t" for c in text)


def _sample(stream: BinaryIO, size: int) -> str:
    if not size:
        return ""
    digest = hashlib.sha256(size.to_bytes(8, "big"))
    for offset in (0, size // 2, max(0, size - _SAMPLE_BYTES)):
        stream.seek(offset)
        digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
