# SPDX-License-Identifier: Apache-2.0
"""Reading ``.pkl``: the format of Detectron2's and Detectron's model zoos, NumPy arrays by name."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError
from .pickle_machine import (
    Buildable,
    Builder,
    Global,
    PickleError,
    PickleMachine,
    UnsafePickleError,
    dictionary,
    opaque,
)
from .regular_file import file_bytes, open_regular, reason_of
from .tensors import TensorError, TensorSpec, check_names, check_shape

_UNSAFE = "not a safe model-zoo pickle"
_UNREADABLE = "not a readable model-zoo pickle"

#: Array types by NumPy's code without byte order, and the element types they become.
_DTYPES = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}
# NumPy's codes of other numbers, which occur beside the weights (versions, iterations).
_SCALARS = frozenset(("u2", "u4", "u8", *_DTYPES))


class _Dtype(Buildable):
    """``numpy.dtype`` of numbers; the state may only set the byte order."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = "<"

    def build(self, state: object) -> None:
        if (
            not isinstance(state, tuple)
            or len(state) not in (8, 9)
            or state[1] not in ("<", ">", "|", "=")
            or any(part is not None for part in state[2:5])
        ):
            raise UnsafePickleError("its pickle makes an array type that is no plain number")
        self.order = state[1]

    @property
    def numpy(self) -> np.dtype:
        return np.dtype(self.order + self.code)


class _Array(Buildable):
    """``numpy.ndarray``; the bytes stay as they are until they are needed."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype: _Dtype | None = None
        self.fortran = False
        self.data: bytes = b""

    def build(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise PickleError("its pickle makes an array without shape, type or bytes")
        _, shape, dtype, fortran, data = state
        self.fill(shape, dtype, bool(fortran), data)

    def fill(self, shape: object, dtype: object, fortran: bool, data: object) -> None:
        self.shape = check_shape(shape)
        if not isinstance(dtype, _Dtype):
            raise PickleError("its pickle makes an array without a type")
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin-1")
        if not isinstance(data, bytes | bytearray):
            raise UnsafePickleError("its pickle makes an array of objects")
        self.dtype, self.fortran, self.data = dtype, fortran, bytes(data)
        expected = TensorSpec(self.shape, torch.uint8).numel * dtype.numpy.itemsize
        if expected != len(data):
            raise TensorError(
                f"an array of shape {self.shape} should have {expected} bytes and has {len(data)}"
            )

    def spec(self, name: str) -> TensorSpec:
        if self.dtype is None or self.dtype.code not in _DTYPES:
            raise TensorError(f"array {name[:80]!r} has a type that no detector has")
        return TensorSpec(self.shape, _DTYPES[self.dtype.code])

    def tensor(self) -> Tensor:
        array = np.frombuffer(self.data, self.dtype.numpy).astype(f"={self.dtype.code}")
        array = array.reshape(self.shape, order="F" if self.fortran else "C")
        return torch.from_numpy(np.ascontiguousarray(array)).reshape(self.shape)


@dataclass(frozen=True)
class ZooPickleFile:
    """A checked ``.pkl`` file (:class:`WeightsFile`)."""

    specs: dict[str, TensorSpec]
    matching_heuristics: bool
    caffe2: bool
    arrays: Mapping[str, _Array]

    def load(self) -> dict[str, Tensor]:
        """The arrays by name, as tensors on the CPU."""
        return {name: array.tensor() for name, array in self.arrays.items()}


def open_zoo_pickle(path: Path) -> ZooPickleFile:
    """Read a ``.pkl`` file of NumPy arrays without unpickling it.

    Known are Detectron2's (``{"model": ..., "__author__": ...}``), where ``matching_heuristics``
    may ask for an alignment of names, and Detectron's (names of Caffe2, also below ``"blobs"``).

    Raises:
        CheckpointError: unreadable, truncated, holds code, or is no state dict.
    """
    with open_regular(path) as stream:
        size = file_bytes(stream)
        if not size:
            raise CheckpointError(path, f"{_UNREADABLE}: the file is empty")
        try:
            # Reading from a map is bounded by the file, whatever length the bytes claim.
            with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
                content = PickleMachine(_builders(size)).load(view)
        except UnsafePickleError as error:
            raise CheckpointError(path, f"{_UNSAFE}: {error}") from None
        except (PickleError, TensorError, OSError) as error:
            raise CheckpointError(path, f"{_UNREADABLE}: {reason_of(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(path, "holds no state dict")
    if "model" in content and "__author__" in content:
        arrays = content["model"]
        heuristics = content.get("matching_heuristics") is True
        caffe2 = heuristics and content["__author__"] == "Caffe2"
    else:
        blobs = content.get("blobs", content)
        arrays, heuristics, caffe2 = blobs, True, True
        if isinstance(blobs, dict):
            arrays = {n: a for n, a in blobs.items() if not str(n).endswith("_momentum")}
    if not isinstance(arrays, dict) or not arrays:
        raise CheckpointError(path, "holds no state dict")
    for name, value in arrays.items():
        if not isinstance(name, str) or not isinstance(value, _Array):
            raise CheckpointError(path, f"entry {str(name)[:80]!r} of its state dict is no array")
    try:
        check_names(arrays)
        specs = {name: array.spec(name) for name, array in arrays.items()}
        total = sum(len(array.data) for array in arrays.values())
        if total > size:
            raise TensorError(f"its arrays have {total} bytes, more than the file")
    except TensorError as error:
        raise CheckpointError(path, str(error)) from None
    return ZooPickleFile(specs, heuristics, caffe2, dict(arrays))


def _dtype(arguments: tuple) -> _Dtype:
    code = arguments[0]
    if isinstance(code, bytes):
        code = code.decode("latin-1")
    if code not in _SCALARS:
        raise UnsafePickleError("its pickle makes an array type that is no plain number")
    return _Dtype(code)


def _reconstruct(arguments: tuple) -> _Array:
    kind = arguments[0]
    if not isinstance(kind, Global) or str(kind) != "numpy.ndarray":
        raise UnsafePickleError("its pickle makes an array of a class of its own")
    return _Array()


def _frombuffer(arguments: tuple) -> _Array:
    data, dtype, shape, order = arguments
    array = _Array()
    array.fill(shape, dtype, order == "F", data)
    return array


def _builders(size: int) -> dict[str, Builder | None]:
    """What a zoo pickle of ``size`` bytes may call."""
    budget = [size]

    def encode(arguments: tuple) -> bytes:
        """``_codecs.encode(text, "latin1")``: how Python 3 writes bytes for Python 2."""
        text, encoding = arguments
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise UnsafePickleError("its pickle encodes something that is no bytes")
        # The same long text could be encoded again and again.
        budget[0] -= len(text)
        if budget[0] < 0:
            raise PickleError("its pickle expands to more than the file")
        return text.encode("latin-1")

    builders: dict[str, Builder | None] = {
        "numpy.ndarray": None,
        "numpy.dtype": _dtype,
        "_codecs.encode": encode,
        "collections.OrderedDict": dictionary,
    }
    for core in ("numpy.core", "numpy._core"):
        builders[f"{core}.multiarray._reconstruct"] = _reconstruct
        builders[f"{core}.multiarray.scalar"] = opaque
        builders[f"{core}.numeric._frombuffer"] = _frombuffer
    return builders
