# SPDX-License-Identifier: Apache-2.0
"""Weights of any format, read without running anything in them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from d2defense.files import write_bytes

from .errors import CheckpointError
from .pytorch import open_pytorch
from .safetensors_file import open_safetensors
from .tensors import WeightsFile
from .zoo_pickle import open_zoo_pickle

_READERS: dict[str, Callable[[Path], WeightsFile]] = {
    ".pth": open_pytorch,
    ".pt": open_pytorch,
    ".pkl": open_zoo_pickle,
    ".safetensors": open_safetensors,
}

#: Endings of files that hold weights.
WEIGHTS_SUFFIXES = tuple(_READERS)


def open_weights(path: Path) -> WeightsFile:
    """Check a weights file and learn its tensors' names and shapes, without loading them.

    Its ending says which format it is, as for Detectron2 itself; what the bytes look like does not
    count, so that the reader that a user trusts and this one cannot be made to disagree.

    Raises:
        CheckpointError: an unknown ending, unreadable, truncated, holds code, or no state dict.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix)
    if reader is None:
        raise CheckpointError(path, f"not a weights file ({describe_suffixes()})")
    return reader(path)


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Reads Detectron2's checkpoints (``{"model": ...}`` beside optimizer and schedule) and bare
    state dicts in ``.pth``, the model zoos' ``.pkl``, and ``.safetensors``.

    Raises:
        CheckpointError: as :func:`open_weights`.
    """
    return open_weights(path).load()


def describe_suffixes() -> str:
    """The endings of weights files, for messages."""
    return ", ".join(f"*{suffix}" for suffix in WEIGHTS_SUFFIXES)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def save_state_dict(path: Path, state: dict[str, Tensor], dtype: torch.dtype | None = None) -> Path:
    """Write weights as Detectron2 does, ``{"model": ...}``, without optimizer or schedule.

    Args:
        path: a ``.pth`` file; written whole or not at all.
        state: tensors by name.
        dtype: of floating-point tensors in the file; as they are if None. Loading brings them
            back to the type of the model.
    """
    tensors = {name: tensor.detach().cpu() for name, tensor in state.items()}
    if dtype is not None:
        tensors = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
    stream = io.BytesIO()
    torch.save({"model": tensors}, stream)
    return write_bytes(path, stream.getvalue())
