# SPDX-License-Identifier: Apache-2.0
"""What weights may be made of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

MAX_TENSORS = 100_000
MAX_NAME = 500
MAX_DIMENSIONS = 16


class TensorSpec(NamedTuple):
    """A tensor as a file announces it.

    Attributes:
        shape: its size in each dimension.
        dtype: of its elements.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class TensorError(ValueError):
    """A tensor that cannot be one of a detector."""


def check_shape(shape: object) -> tuple[int, ...]:
    """``shape`` as a tuple of sizes.

    Raises:
        TensorError: it is none.
    """
    if not isinstance(shape, tuple | list) or len(shape) > MAX_DIMENSIONS:
        raise TensorError("a tensor's shape is no list of sizes")
    if not all(type(size) is int and 0 <= size < 2**40 for size in shape):
        raise TensorError("a tensor's shape holds something that is no size")
    return tuple(shape)


def check_view(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, storage_numel: int
) -> None:
    """Check that a tensor lies inside its storage and is not larger than it.

    Args:
        shape: its size in each dimension.
        stride: elements between neighbours in each dimension.
        offset: of its first element in the storage.
        storage_numel: elements in the storage.

    Raises:
        TensorError: it reaches beyond the storage, or repeats it.
    """
    integers = [*stride, offset]
    if len(stride) != len(shape) or not all(type(i) is int and i >= 0 for i in integers):
        raise TensorError("a tensor's stride or offset does not fit its shape")
    end = offset
    if all(shape):
        end += 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if end > storage_numel or math.prod(shape) > storage_numel:
        raise TensorError(
            f"a tensor of shape {shape} does not fit into its storage of {storage_numel} elements"
        )


def check_names(names: Mapping[object, object]) -> None:
    """Check the number and the names of a state dict's tensors.

    Raises:
        TensorError: too many, or a name that no module can have.
    """
    if len(names) > MAX_TENSORS:
        raise TensorError(f"holds {len(names)} tensors; at most {MAX_TENSORS} are read")
    for name in names:
        if isinstance(name, str) and len(name) > MAX_NAME:
            raise TensorError(f"a tensor's name has {len(name)} characters")


def nonfinite_tensors(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity, in order.

    Such weights are legal in a file and may be an accident of training or an attempt to make a
    scan's statistics meaningless; a report should say so.
    """
    return [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
