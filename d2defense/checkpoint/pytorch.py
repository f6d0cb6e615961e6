# SPDX-License-Identifier: Apache-2.0
"""Reading ``.pth``: PyTorch's zip archives.

The pickle in an archive says of each tensor its storage, place, size and type. A machine that
reaches no callable (:mod:`pickle_machine`) reads that; the numbers are then copied from the file.
``torch.load`` has no part in it: it would allocate whatever sizes the pickle claims.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import CheckpointError
from .pickle_machine import (
    Builder,
    Global,
    OrderedDictionary,
    PickleMachine,
    hashed,
    opaque,
    ordered_dictionary,
)
from .pickle_opcodes import Dialect, PickleError, UnsafePickleError
from .regular_file import identity, open_regular, read_into, reason_of
from .tensors import TensorError, TensorSpec, check_shape, check_view
from .weight_sets import Contents, find_others
from .zip_archive import (
    MAGIC,
    Archive,
    ArchiveError,
    Member,
    TorchScriptError,
    open_archive,
    read_member,
)

_UNSAFE = "not a safe PyTorch checkpoint"
_UNREADABLE = "not a readable PyTorch checkpoint"

# ``torch.save`` writes protocol 2, from Python 3. PyTorch's own reader of weights knows no other.
_DIALECT = Dialect(protocols=frozenset((2,)), byte_strings=False)

# The pickle of the number that PyTorch's container before 1.6 begins with.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_TAR_MAGIC = b"ustar"

#: Storage types and the element types they stand for.
_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_OTHER_STORAGES = (
    *("ComplexDouble", "ComplexFloat", "QUInt8", "QInt8", "QInt32", "QUInt4x2", "QUInt2x4"),
    "Untyped",
)
# Tensors on PyTorch's meta device have no numbers.
_LOCATION = re.compile(r"(?!meta)[a-z_]{1,30}(:\d{1,3})?")

_REFUSED = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_sparse_csr_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values",
    "torch._utils._rebuild_tensor_v3": "a tensor of an element type that no detector has",
}


@dataclass(frozen=True)
class _Storage:
    """Numbers of one type in a member of the archive."""

    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class _View:
    """A tensor that was announced: which numbers of a storage, in which order.

    Attributes:
        storage: where its numbers are.
        offset: of the first one.
        shape, stride: as in PyTorch.
    """

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.shape, self.storage.dtype)

    @property
    def end(self) -> int:
        """One more than the index of its last number."""
        if not all(self.shape):
            return self.offset
        steps = zip(self.shape, self.stride, strict=True)
        return self.offset + 1 + sum((size - 1) * step for size, step in steps)


def read_pytorch(path: Path) -> Contents:
    """Check a ``.pth`` file and see what sets of weights it holds, without loading them.

    Raises:
        CheckpointError: unreadable, truncated, or holds code.
    """
    with open_regular(path) as stream:
        try:
            archive, content = _read(stream)
            main = content.get("model", content) if isinstance(content, dict) else None
            others = find_others(content, main, _View)
        except (UnsafePickleError, TorchScriptError) as error:
            raise CheckpointError(path, f"{_UNSAFE}: {error}") from None
        except (PickleError, ArchiveError, TensorError, OSError) as error:
            raise CheckpointError(path, f"{_UNREADABLE}: {reason_of(error)}") from None
        was = identity(stream)
    heuristics = caffe2 = False
    if isinstance(content, dict) and "model" in content:
        # Detectron2 looks for these in every format.
        heuristics = content.get("matching_heuristics", False)
        caffe2 = content.get("__author__") == "Caffe2"
    if type(heuristics) is not bool:
        raise CheckpointError(path, "its matching_heuristics is neither true nor false")
    return Contents(
        path, main, others, _View, _loader(path, was, archive.storages), heuristics, caffe2
    )


def _read(stream: BinaryIO) -> tuple[Archive, object]:
    """The archive and what its pickle holds, with a :class:`_View` in place of each tensor.

    Raises:
        PickleError: the pickle is broken or asks for more than tensors.
        ArchiveError: not a zip archive that PyTorch wrote.
        TensorError: a tensor does not fit its storage.
    """
    start = stream.read(512)
    if not start:
        raise ArchiveError("the file is empty")
    if start.startswith(_LEGACY_MAGIC):
        raise ArchiveError(
            "the container of PyTorch before 1.6; convert it with "
            "torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    if start[257:262] == _TAR_MAGIC:
        raise ArchiveError("the tar archive of PyTorch before 0.2, which is not read")
    if not start.startswith(MAGIC):
        raise ArchiveError("not a zip archive, as PyTorch writes them")
    archive = open_archive(stream)
    storages: dict[str, _Storage] = {}
    pickled = read_member(stream, archive.pickle)
    machine = PickleMachine(_DIALECT, _BUILDERS, lambda saved_id: _storage(saved_id, storages))
    content = machine.load(io.BytesIO(pickled), len(pickled))
    for storage in storages.values():
        member = archive.storages.get(storage.key)
        if member is None or member.size != storage.nbytes:
            raise TensorError(
                f"storage {storage.key[:40]} should have {storage.nbytes} bytes and has "
                f"{member and member.size}"
            )
    if set(archive.storages) != set(storages):
        raise ArchiveError("its zip archive holds storages that no tensor has")
    if archive.computable and list(archive.storages) != list(storages):
        raise ArchiveError("storages in its zip archive are not where PyTorch puts them")
    return archive, content


def _loader(
    path: Path, was: tuple[int, ...], members: Mapping[str, Member]
) -> Callable[[Mapping[str, _View]], dict[str, Tensor]]:
    """What reads tensors from the file that ``was`` identifies."""

    def load(views: Mapping[str, _View]) -> dict[str, Tensor]:
        with open_regular(path) as stream:
            if identity(stream) != was:
                raise CheckpointError(path, "has changed while it was read")
            try:
                return _load(stream, views, members)
            except (OSError, RuntimeError, MemoryError) as error:  # memory is a RuntimeError too
                reason = reason_of(error).split("\n", 1)[0]
                raise CheckpointError(path, f"{_UNREADABLE}: {reason}") from None

    return load


def _load(
    stream: BinaryIO, views: Mapping[str, _View], members: Mapping[str, Member]
) -> dict[str, Tensor]:
    """The tensors by name. Those that share a storage share their memory, as PyTorch's do."""
    parts: dict[_Storage, tuple[int, int]] = {}
    for view in views.values():
        first, end = parts.get(view.storage, (view.offset, view.end))
        parts[view.storage] = min(first, view.offset), max(end, view.end)
    numbers: dict[_Storage, Tensor] = {}
    for storage, (first, end) in parts.items():
        width = storage.dtype.itemsize
        content = torch.empty((end - first) * width, dtype=torch.uint8)
        if end > first:
            place = members[storage.key].offset + first * width
            read_into(stream, place, memoryview(content.numpy()))
        numbers[storage] = content.view(storage.dtype)
    return {
        name: numbers[view.storage].as_strided(
            view.shape, view.stride, view.offset - parts[view.storage][0]
        )
        for name, view in views.items()
    }


def _storage(saved_id: object, storages: dict[str, _Storage]) -> _Storage:
    """The storage of a persistent id, ``("storage", type, key, location, elements)``."""
    if type(saved_id) is not tuple or len(saved_id) != 5 or saved_id[0] != "storage":
        raise UnsafePickleError("its pickle refers to something that is no storage")
    _, kind, key, location, numel = saved_id
    if not isinstance(kind, Global) or type(numel) is not int or not 0 <= numel < 2**48:
        raise UnsafePickleError("its pickle refers to a storage without type or size")
    if type(key) is not str or type(location) is not str or not _LOCATION.fullmatch(location):
        raise UnsafePickleError("its pickle refers to a storage without name or place")
    if kind.name not in _STORAGES:
        raise TensorError(f"holds a tensor of type {kind.name[:40]}, which no detector has")
    storage = _Storage(key, _STORAGES[kind.name], numel)
    if storages.setdefault(key, storage) != storage:
        raise TensorError(f"storage {key[:40]} is described in two ways")
    return storage


def _rebuild_tensor(arguments: tuple) -> _View:
    """``torch._utils._rebuild_tensor(storage, offset, size, stride)``."""
    storage, offset, size, stride = arguments
    if not isinstance(storage, _Storage):
        raise UnsafePickleError("its pickle makes a tensor of something that is no storage")
    shape, stride = check_shape(size), check_shape(stride)
    check_view(shape, stride, offset, storage.numel)
    return _View(storage, offset, shape, stride)


def _rebuild_tensor_v2(arguments: tuple) -> _View:
    """``torch._utils._rebuild_tensor_v2(..., requires_grad, hooks)``."""
    if len(arguments) > 6:  # metadata, which PyTorch's reader obeys
        raise UnsafePickleError("its pickle has a tensor whose numbers are to be negated")
    *view, requires_grad, hooks = arguments
    _check_flags(requires_grad, hooks)
    return _rebuild_tensor(tuple(view))


def _rebuild_parameter(arguments: tuple) -> _View:
    """``torch._utils._rebuild_parameter(data, requires_grad, hooks)``."""
    view, requires_grad, hooks = arguments
    if not isinstance(view, _View):
        raise UnsafePickleError("its pickle makes a parameter of something that is no tensor")
    _check_flags(requires_grad, hooks)
    return view


def _check_flags(requires_grad: object, hooks: object) -> None:
    if type(requires_grad) is not bool or type(hooks) is not OrderedDictionary or hooks:
        raise UnsafePickleError("its pickle makes a tensor with hooks")


def _size(arguments: tuple) -> tuple[int, ...]:
    """``torch.Size(sizes)``."""
    (sizes,) = arguments
    return check_shape(sizes)


def _refuse(what: str) -> Builder:
    def build(arguments: tuple) -> object:
        raise TensorError(f"holds {what}")

    return build


_BUILDERS: dict[str, Builder | None] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": _size,
    "torch.device": opaque,
    "torch.serialization._get_layout": opaque,
    "collections.OrderedDict": ordered_dictionary,
    # Schedules keep milestones in a Counter, and some settings are sets.
    "collections.Counter": hashed,
    "__builtin__.set": hashed,
    **{name: _refuse(what) for name, what in _REFUSED.items()},
    **{f"torch.{name}": None for name in _STORAGES},
    **{f"torch.{name}Storage": None for name in _OTHER_STORAGES},
    **{f"torch.storage.{name}Storage": None for name in ("Untyped", "Typed")},
    **{f"torch.{str(dtype).removeprefix('torch.')}": None for dtype in _STORAGES.values()},
}
