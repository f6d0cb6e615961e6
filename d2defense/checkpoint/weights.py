# SPDX-License-Identifier: Apache-2.0
"""Reading weights without running anything in them."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import torch
from torch import Tensor

from d2defense.files import write_bytes

from .errors import CheckpointError


def load_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file by name, on the CPU.

    Reads Detectron2's checkpoints (``{"model": ...}`` beside optimizer and schedule) and bare
    state dicts, with PyTorch's unpickler that admits tensors and plain containers only.

    Raises:
        CheckpointError: unreadable, truncated, holds code, or is no state dict.
    """
    path = Path(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n", 1)[0]
        if "Unsupported" in str(error) or "GLOBAL" in str(error):
            reason = "its pickle asks for more than tensors; it was not executed"
        raise CheckpointError(path, f"not a safe PyTorch checkpoint: {reason}") from None
    except Exception as error:  # zip, storage and allocation errors come as many types
        raise CheckpointError(path, f"not a readable PyTorch checkpoint: {error}") from None
    state = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(state, dict) or not state:
        raise CheckpointError(path, "holds no state dict")
    foreign = [k for k, v in state.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if foreign:
        raise CheckpointError(
            path, f"entry {str(foreign[0])[:80]!r} of its state dict is no tensor"
        )
    return state


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
