# SPDX-License-Identifier: Apache-2.0
"""Reading ``.safetensors``."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import CheckpointError
from .regular_file import file_bytes, open_regular
from .tensors import TensorError, TensorSpec, check_names, check_shape

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
class SafetensorsFile:
    """A checked ``.safetensors`` file (:class:`WeightsFile`)."""

    path: Path
    specs: dict[str, TensorSpec]
    matching_heuristics: bool = False
    caffe2: bool = False

    def load(self) -> dict[str, Tensor]:
        """The tensors by name, on the CPU."""
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                return {name: file.get_tensor(name) for name in self.specs}
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise CheckpointError(self.path, f"{_UNREADABLE}: {error}") from None


def open_safetensors(path: Path) -> SafetensorsFile:
    """Check a ``.safetensors`` file without loading its tensors.

    The library itself checks that the tensors fill the file without gap or overlap.

    Raises:
        CheckpointError: unreadable, truncated, or no state dict.
    """
    with open_regular(path) as stream:
        size, start = file_bytes(stream), stream.read(8)
    header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= header_bytes <= size - 8:
        raise CheckpointError(path, f"{_UNREADABLE}: truncated, or another format")
    if header_bytes > _MAX_HEADER_BYTES:
        raise CheckpointError(path, f"{_UNREADABLE}: its header has {header_bytes} bytes")
    specs = {}
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
                specs[name] = TensorSpec(check_shape(announced.get_shape()), _DTYPES[dtype])
    except TensorError as error:
        raise CheckpointError(path, str(error)) from None
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(path, f"{_UNREADABLE}: {error}") from None
    if not specs:
        raise CheckpointError(path, "holds no state dict")
    return SafetensorsFile(path, specs)
