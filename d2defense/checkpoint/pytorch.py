# SPDX-License-Identifier: Apache-2.0
"""Reading ``.pth``: PyTorch's zip archives.

Each file is read twice. The first reader (:mod:`pickle_machine`) sees names and sizes only and
refuses what does not add up; ``torch.load(weights_only=True)`` then reads what is known to be
harmless and to fit. By itself it would allocate whatever sizes the pickle claims.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from .errors import CheckpointError
from .pickle_machine import (
    Builder,
    Global,
    PickleMachine,
    hashed,
    opaque,
    ordered_dictionary,
)
from .pickle_opcodes import Dialect, PickleError, UnsafePickleError
from .regular_file import open_regular, reason_of
from .tensors import DTYPES, TensorError, TensorSpec, check_names, check_shape, check_view
from .zip_archive import MAGIC, ArchiveError, TorchScriptError, open_archive

_UNSAFE = "not a safe PyTorch checkpoint"
_UNREADABLE = "not a readable PyTorch checkpoint"

# ``torch.save`` writes protocol 2, from Python 3. Its reader of weights knows no other.
_DIALECT = Dialect(protocols=frozenset((2,)), byte_strings=False)

# The pickle of the number that PyTorch's container before 1.6 begins with.
_LEGACY_MAGIC = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_TAR_MAGIC = b"ustar"
# Larger files are not looked into to find out whether they are weights.
_MAX_PEEK_BYTES = 4 << 30

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
    key: str
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class _TensorStub:
    """A tensor that was announced; only its spec is known."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec


@dataclass(frozen=True)
class PyTorchFile:
    """A checked ``.pth`` file (:class:`WeightsFile`)."""

    path: Path
    specs: dict[str, TensorSpec]
    matching_heuristics: bool = False
    caffe2: bool = False

    def load(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU.

        Raises:
            CheckpointError: PyTorch reads it differently, or not at all.
        """
        with open_regular(self.path) as stream:
            try:
                content = torch.load(stream, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise CheckpointError(self.path, f"{_UNSAFE}: {_first_line(error)}") from None
            except Exception as error:  # zip, storage and allocation errors come as many types
                raise CheckpointError(self.path, f"{_UNREADABLE}: {_first_line(error)}") from None
        state = content.get("model", content) if isinstance(content, dict) else {}
        specs = {
            name: TensorSpec(tuple(tensor.shape), tensor.dtype)
            for name, tensor in state.items()
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided
        }
        if specs != self.specs:
            raise CheckpointError(self.path, f"{_UNREADABLE}: its parts contradict each other")
        return dict(state)


def open_pytorch(path: Path) -> PyTorchFile:
    """Check a ``.pth`` file without loading it.

    Raises:
        CheckpointError: unreadable, truncated, holds code, or is no state dict.
    """
    with open_regular(path) as stream:
        try:
            content = read_structure(stream)
        except (UnsafePickleError, TorchScriptError) as error:
            raise CheckpointError(path, f"{_UNSAFE}: {error}") from None
        except (PickleError, ArchiveError, TensorError, OSError) as error:
            raise CheckpointError(path, f"{_UNREADABLE}: {reason_of(error)}") from None
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise CheckpointError(path, "holds no state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, _TensorStub):
            raise CheckpointError(path, f"entry {str(name)[:80]!r} of its state dict is no tensor")
    try:
        check_names(state)
    except TensorError as error:
        raise CheckpointError(path, str(error)) from None
    return PyTorchFile(path, {name: stub.spec for name, stub in state.items()})


def read_structure(stream: BinaryIO) -> object:
    """The content of a ``.pth`` file with an announcement in place of each tensor.

    Raises:
        PickleError: the pickle is broken or asks for more than tensors.
        ArchiveError: the zip archive is not one of PyTorch's.
        TensorError: a tensor does not fit its storage.
    """
    stream.seek(0)
    start = stream.read(512)
    stream.seek(0)
    if not start:
        raise ArchiveError("the file is empty")
    if start.startswith(MAGIC):
        return _read_archive(stream)
    if start.startswith(_LEGACY_MAGIC):
        raise ArchiveError(
            "the container of PyTorch before 1.6; convert it with "
            "torch.save(torch.load(OLD, weights_only=True), NEW)"
        )
    if start[257:262] == _TAR_MAGIC:
        raise ArchiveError("the tar archive of PyTorch before 0.2, which is not read")
    raise ArchiveError("not a zip archive, as PyTorch writes them")


def _read_archive(stream: BinaryIO) -> object:
    archive, folder = open_archive(stream)
    storages: dict[str, _Storage] = {}
    with archive:
        try:
            # Everything in the archive is stored as it is, so this is no larger than the file.
            pickled = archive.read(f"{folder}/data.pkl")
            machine = PickleMachine(_DIALECT, _BUILDERS, lambda pid: _storage(pid, storages))
            content = machine.load(io.BytesIO(pickled), len(pickled))
        except (PickleError, TensorError):
            raise
        except Exception as error:  # a member's own header can differ from the directory's
            raise ArchiveError(f"damaged zip archive: {error}") from None
        sizes = {member.filename: member.file_size for member in archive.infolist()}
    for storage in storages.values():
        stored = sizes.get(f"{folder}/data/{storage.key}")
        if stored != storage.nbytes:
            raise TensorError(
                f"storage {storage.key[:40]} should have {storage.nbytes} bytes and has {stored}"
            )
    return content


def _storage(identity: object, storages: dict[str, _Storage]) -> _Storage:
    """The storage of a persistent id, ``("storage", type, key, location, elements[, view])``."""
    if type(identity) is not tuple or len(identity) != 5 or identity[0] != "storage":
        raise UnsafePickleError("its pickle refers to something that is no storage")
    _, kind, key, _, numel = identity
    if not isinstance(kind, Global) or type(numel) is not int or not 0 <= numel < 2**48:
        raise UnsafePickleError("its pickle refers to a storage without type or size")
    if type(key) is not str:
        raise UnsafePickleError("its pickle refers to a storage without a name")
    name = kind.name.removesuffix("Storage").lower()
    if name not in DTYPES:
        raise TensorError(f"holds a tensor of type {kind.name[:40]}, which no detector has")
    storage = _Storage(key, DTYPES[name], numel)
    if storages.setdefault(key, storage) != storage:
        raise TensorError(f"storage {key[:40]} is described in two ways")
    return storage


def _rebuild_tensor(arguments: tuple) -> _TensorStub:
    """``torch._utils._rebuild_tensor_v2(storage, offset, size, stride, ...)``."""
    storage, offset, size, stride = arguments[:4]
    if not isinstance(storage, _Storage):
        raise UnsafePickleError("its pickle makes a tensor of something that is no storage")
    shape = check_shape(size)
    check_view(shape, tuple(stride), offset, storage.numel)
    return _TensorStub(TensorSpec(shape, storage.dtype))


def _rebuild_parameter(arguments: tuple) -> _TensorStub:
    """``torch._utils._rebuild_parameter(data, requires_grad, hooks)``."""
    if not isinstance(arguments[0], _TensorStub):
        raise UnsafePickleError("its pickle makes a parameter of something that is no tensor")
    return arguments[0]


def _size(arguments: tuple) -> tuple[int, ...]:
    return check_shape(*arguments)


def _refuse(what: str) -> Builder:
    def build(arguments: tuple) -> object:
        raise TensorError(f"holds {what}")

    return build


_STORAGE_TYPES = [
    *("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool"),
    *("ComplexDouble", "ComplexFloat", "QUInt8", "QInt8", "QInt32", "QUInt4x2", "QUInt2x4"),
    "Untyped",
]
_BUILDERS: dict[str, Builder | None] = {
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": _size,
    "torch.device": opaque,
    "torch.serialization._get_layout": opaque,
    "collections.OrderedDict": ordered_dictionary,
    # Schedules keep milestones in a Counter, and some settings are sets.
    "collections.Counter": hashed,
    "builtins.set": hashed,
    "__builtin__.set": hashed,
    **{name: _refuse(what) for name, what in _REFUSED.items()},
    **{f"torch.{name}Storage": None for name in _STORAGE_TYPES},
    **{f"torch.cuda.{name}Storage": None for name in _STORAGE_TYPES},
    **{f"torch.storage.{name}Storage": None for name in ("Untyped", "Typed")},
    **{f"torch.{str(dtype).removeprefix('torch.')}": None for dtype in DTYPES.values()},
}


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def is_other_pytorch_file(path: Path) -> bool:
    """Whether a ``.pth`` file is sound, but something else than weights.

    Detectron2 writes predictions to ``instances_predictions.pth``, and trainers write the state of
    an optimizer; such files lie in folders with checkpoints. What cannot be read may be anything,
    so it is not one of these.
    """
    if path.suffix not in (".pth", ".pt") or path.stat().st_size > _MAX_PEEK_BYTES:
        return False
    try:
        with open_regular(path) as stream:
            content = read_structure(stream)
    except (CheckpointError, PickleError, ArchiveError, TensorError, OSError):
        return False
    if not isinstance(content, dict):
        return True
    state = content.get("model", content)
    return isinstance(state, dict) and not any(isinstance(v, _TensorStub) for v in state.values())
