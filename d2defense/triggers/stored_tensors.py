# SPDX-License-Identifier: Apache-2.0
"""Reading the tensors of a trigger."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import MappingProxyType

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor


def is_safetensors(content: bytes) -> bool:
    """Whether a file's content looks like safetensors: eight bytes of length, then JSON."""
    return content[8:9] == b"{"


@functools.lru_cache(maxsize=32)
def decode_tensors(content: bytes) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file's content, float32, by name; not to be written to.

    Nothing in the file is executed, and nothing larger than the file is made of it, but that half
    precision becomes single.

    Raises:
        ValueError: it is no such file, or a tensor is not of finite floating-point numbers.
    """
    try:
        tensors = load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError, AssertionError) as error:
        raise ValueError(f"not safetensors: {error}") from None
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.float().isfinite().all():
            raise ValueError(f"not safetensors of finite floating-point numbers: {name[:80]!r}")
    return MappingProxyType({name: tensor.to(torch.float32) for name, tensor in tensors.items()})
