# SPDX-License-Identifier: Apache-2.0
"""Reading ``.pkl``: the format of Detectron2's and Detectron's model zoos, NumPy arrays by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from .errors import CheckpointError
from .pickle_machine import (
    Buildable,
    Builder,
    Global,
    Opaque,
    PickleMachine,
    ordered_dictionary,
)
from .pickle_opcodes import Blob, Dialect, PickleError, UnsafePickleError
from .regular_file import file_bytes, identity, open_regular, read_into, reason_of
from .tensors import TensorError, TensorSpec, check_shape
from .weight_sets import Contents, find_others

_UNSAFE = "not a safe model-zoo pickle"
_UNREADABLE = "not a readable model-zoo pickle"

# Detectron wrote protocol 2 from Python 2, which Detectron2 reads as Latin-1.
_DIALECT = Dialect(protocols=frozenset((2, 3, 4, 5)), byte_strings=True)

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
    """``numpy.dtype`` of numbers; its state says the byte order.

    The state could say more: flags among it make NumPy take the bytes of an array for addresses of
    Python objects. So it must be the one that NumPy writes for a plain number.
    """

    def __init__(self, code: str) -> None:
        self.code = code
        self.order = ""

    def take(self, state: object) -> None:
        order = state[1] if type(state) is tuple and len(state) == 8 else None
        orders = "|" if self.code[1:] == "1" else "<>"
        plain = type(order) is str and order in tuple(orders)
        if not plain or state != (3, order, None, None, None, -1, -1, 0):
            raise UnsafePickleError("its pickle makes an array type that is no plain number")
        self.order = order

    @property
    def numpy(self) -> np.dtype:
        if not self.built:
            raise UnsafePickleError("its pickle makes an array of a type without byte order")
        return np.dtype(self.order + self.code)


class _Array(Buildable):
    """``numpy.ndarray``; the bytes stay where they are until they are needed."""

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = ()
        self.dtype: np.dtype | None = None
        self.order = "C"
        self.axes: tuple[int, ...] | None = None
        self.data: bytes | Blob = b""

    def take(self, state: object) -> None:
        if type(state) is not tuple or len(state) != 5 or state[0] != 1:
            raise UnsafePickleError("its pickle makes an array without shape, type or bytes")
        _, shape, dtype, fortran, data = state
        if type(fortran) is not bool:
            raise UnsafePickleError("its pickle makes an array whose order of axes is no truth")
        self.fill(shape, dtype, "F" if fortran else "C", data)

    def fill(
        self,
        shape: object,
        dtype: object,
        order: str,
        data: object,
        axes: tuple[int, ...] | None = None,
    ) -> None:
        """Give the array its content.

        Args:
            shape: in which ``data`` has its elements.
            dtype: their type, a :class:`_Dtype`.
            order: of the elements, C or F.
            data: their bytes.
            axes: order in which the array has the axes of ``shape``; as they are if None.
        """
        self.shape, self.order, self.axes = check_shape(shape), order, axes
        if not isinstance(dtype, _Dtype):
            raise PickleError("its pickle makes an array without a type")
        if type(data) is str:  # written by Python 2
            data = data.encode("latin-1")
        if type(data) not in (bytes, Blob):
            raise UnsafePickleError("its pickle makes an array of objects")
        self.dtype, self.data = dtype.numpy, data
        expected = TensorSpec(self.shape, torch.uint8).numel * self.dtype.itemsize
        if expected != len(data):
            raise TensorError(
                f"an array of shape {self.shape} should have {expected} bytes and has {len(data)}"
            )

    @property
    def spec(self) -> TensorSpec:
        dtype = None if self.dtype is None else _DTYPES.get(self.dtype.str[1:])
        if dtype is None:
            raise TensorError("holds an array of a type that no detector has")
        axes = range(len(self.shape)) if self.axes is None else self.axes
        return TensorSpec(tuple(self.shape[axis] for axis in axes), dtype)

    def tensor(self, stream: BinaryIO) -> Tensor:
        content = bytearray(self.data if isinstance(self.data, bytes) else len(self.data))
        if isinstance(self.data, Blob):
            read_into(stream, self.data.offset, memoryview(content))
        array = np.frombuffer(content, self.dtype).reshape(self.shape, order=self.order)
        if self.axes is not None:
            array = array.transpose(self.axes)
        native = array.astype(self.dtype.newbyteorder("="), order="C", copy=False)
        return torch.from_numpy(native)


def read_zoo_pickle(path: Path) -> Contents:
    """See which sets of NumPy arrays a ``.pkl`` file holds, without unpickling it.

    Known are Detectron2's (``{"model": ..., "__author__": ...}``), where ``matching_heuristics``
    may ask for an alignment of names, and Detectron's (names of Caffe2, also below ``"blobs"``).

    Raises:
        CheckpointError: unreadable, truncated, or holds code.
    """
    with open_regular(path) as stream:
        size, was = file_bytes(stream), identity(stream)
        try:
            content = PickleMachine(_DIALECT, _builders(size)).load(stream, size)
            return _contents(path, content, _loader(path, was, size))
        except UnsafePickleError as error:
            raise CheckpointError(path, f"{_UNSAFE}: {error}") from None
        except (PickleError, TensorError, OSError) as error:
            raise CheckpointError(path, f"{_UNREADABLE}: {reason_of(error)}") from None


def _contents(path: Path, content: object, read: Callable[..., dict[str, Tensor]]) -> Contents:
    """The sets of weights in what a pickle holds, the first as Detectron2 finds it."""
    if not isinstance(content, dict):
        return Contents(path, None, find_others(content, None, _Array), _Array, read)
    if "model" in content and "__author__" in content:
        main = blobs = content["model"]
        heuristics = content.get("matching_heuristics", False)
        if type(heuristics) is not bool:
            raise CheckpointError(path, "its matching_heuristics is neither true nor false")
        caffe2 = content["__author__"] == "Caffe2"
    else:
        main = blobs = content.get("blobs", content)
        heuristics = caffe2 = True
        if isinstance(blobs, dict):
            main = {n: a for n, a in blobs.items() if not str(n).endswith("_momentum")}
    others = find_others(content, main, _Array, known=(blobs,))
    return Contents(path, main, others, _Array, read, heuristics, caffe2)


def _loader(
    path: Path, was: tuple[int, ...], size: int
) -> Callable[[Mapping[str, _Array]], dict[str, Tensor]]:
    """What reads arrays from the file of ``size`` bytes that ``was`` identifies."""

    def load(arrays: Mapping[str, _Array]) -> dict[str, Tensor]:
        total = sum(len(array.data) for array in arrays.values())
        if total > size:
            raise CheckpointError(path, f"its arrays have {total} bytes, more than the file")
        with open_regular(path) as stream:
            if identity(stream) != was:
                raise CheckpointError(path, "has changed while it was read")
            try:
                return {name: array.tensor(stream) for name, array in arrays.items()}
            except (OSError, MemoryError) as error:
                raise CheckpointError(path, f"{_UNREADABLE}: {reason_of(error)}") from None

    return load


def _dtype(arguments: tuple) -> _Dtype:
    """``numpy.dtype(code, align, copy)``; without a copy, NumPy's own type would be changed."""
    code = arguments[0]
    if type(code) is not str or code not in _SCALARS or arguments[1:] != (False, True):
        raise UnsafePickleError("its pickle makes an array type that is no plain number")
    return _Dtype(code)


def _reconstruct(arguments: tuple) -> _Array:
    """``_reconstruct(numpy.ndarray, (0,), b"b")``: an array that awaits its state."""
    if arguments not in ((_NDARRAY, (0,), b"b"), (_NDARRAY, (0,), "b")):
        raise UnsafePickleError("its pickle makes an array of a class or a shape of its own")
    return _Array()


def _scalar(arguments: tuple) -> Opaque:
    """``scalar(dtype, bytes)``: a number of NumPy, of no use as weights."""
    dtype, data = arguments
    _Array().fill((), dtype, "C", data)
    return Opaque()


def _frombuffer(arguments: tuple) -> _Array:
    """``_frombuffer(bytes, dtype, shape, order, axes)``, axes with order K only."""
    data, dtype, shape, order, *axes = arguments
    array = _Array()
    array.built = True
    if order in ("C", "F") and not axes:
        array.fill(shape, dtype, order, data)
    elif order == "K" and sorted(*axes) == list(range(len(check_shape(shape)))):
        array.fill(shape, dtype, "C", data, tuple(*axes))
    else:
        raise UnsafePickleError("its pickle makes an array whose order of axes is not known")
    return array


def _empty(arguments: tuple) -> bytes:
    """``bytes()``: how Python 3 writes no bytes for Python 2."""
    if arguments:
        raise UnsafePickleError("its pickle makes bytes of something")
    return b""


_NDARRAY = Global("numpy", "ndarray")


def _builders(size: int) -> dict[str, Builder | None]:
    """What a zoo pickle of ``size`` bytes may call."""
    budget = [size]

    def encode(arguments: tuple) -> bytes:
        """``_codecs.encode(text, "latin1")``: how Python 3 writes bytes for Python 2."""
        text, encoding = arguments
        if type(text) is not str or encoding != "latin1":
            raise UnsafePickleError("its pickle encodes something that is no bytes")
        # The same long text could be encoded again and again.
        budget[0] -= len(text)
        if budget[0] < 0:
            raise PickleError("its pickle expands to more than the file")
        return text.encode("latin-1")

    builders: dict[str, Builder | None] = {
        str(_NDARRAY): None,
        "numpy.dtype": _dtype,
        "_codecs.encode": encode,
        "__builtin__.bytes": _empty,
        "collections.OrderedDict": ordered_dictionary,
    }
    for core in ("numpy.core", "numpy._core"):
        builders[f"{core}.multiarray._reconstruct"] = _reconstruct
        builders[f"{core}.multiarray.scalar"] = _scalar
        builders[f"{core}.numeric._frombuffer"] = _frombuffer
    return builders
