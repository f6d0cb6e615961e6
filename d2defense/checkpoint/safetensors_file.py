# SPDX-License-Identifier: Apache-2.0
"""Reading ``.safetensors``."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError
from .regular_file import file_bytes, identity, open_regular
from .tensors import TensorError, TensorSpec, check_names, check_shape
from .weight_sets import Contents

_MAX_HEADER_BYTES = 16 << 20
_UNREADABLE = "not a readable safetensors file"

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class _Announced:
    """A tensor of a safetensors file, by its name there."""

    name: str
    spec: TensorSpec


def read_safetensors(path: Path) -> Contents:
    """Check a ``.safetensors`` file, which holds one set of weights, without loading its tensors.

    The library itself checks that the tensors fill the file without gap or overlap.

    Raises:
        CheckpointError: unreadable or truncated.
    """
    with open_regular(path) as stream:
        size, start = file_bytes(stream), stream.read(8)
        header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= header_bytes <= size - 8:
            raise CheckpointError(path, f"{_UNREADABLE}: truncated, or another format")
        if header_bytes > _MAX_HEADER_BYTES:
            raise CheckpointError(path, f"{_UNREADABLE}: its header has {header_bytes} bytes")
        _check_header(path, stream.read(header_bytes))
        was = identity(stream)
    announcements = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            names = dict.fromkeys(file.keys())
            check_names(names)
            for name in names:
                announced = file.get_slice(name)
                dtype = str(announced.get_dtype())
                if dtype not in _DTYPES:
                    raise TensorError(
                        f"tensor {name[:80]!r} has type {dtype[:20]}, which no detector has"
                    )
                spec = TensorSpec(check_shape(announced.get_shape()), _DTYPES[dtype])
                announcements[name] = _Announced(name, spec)
    except TensorError as error:
        raise CheckpointError(path, str(error)) from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(path, f"{_UNREADABLE}: {error}") from None
    return Contents(path, announcements, {}, _Announced, _loader(path, was))


def _check_header(path: Path, header: bytes) -> None:
    """Refuse names that occur twice: readers differ in which of the two they take."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise CheckpointError(path, f"{_UNREADABLE}: its header has the same name twice")
        return found

    try:
        json.loads(header, object_pairs_hook=unique)
    except CheckpointError:
        raise
    except (ValueError, RecursionError):
        raise CheckpointError(path, f"{_UNREADABLE}: its header is no JSON") from None


def _loader(
    path: Path, was: tuple[int, ...]
) -> Callable[[Mapping[str, _Announced]], dict[str, Tensor]]:
    """What reads tensors from the file that ``was`` identifies."""

    def load(announcements: Mapping[str, _Announced]) -> dict[str, Tensor]:
        with open_regular(path) as stream:
            if identity(stream) != was:
                raise CheckpointError(path, "has changed while it was read")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                return {key: file.get_tensor(a.name) for key, a in announcements.items()}
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(path, f"{_UNREADABLE}: {error}") from None

    return load
