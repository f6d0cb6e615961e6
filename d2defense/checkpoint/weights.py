# SPDX-License-Identifier: Apache-2.0
"""Weights of any format, read without running anything in them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from d2defense.files import write_bytes

from .pytorch import read_pytorch
from .safetensors_file import read_safetensors
from .weight_sets import Contents, WeightsFile
from .zoo_pickle import read_zoo_pickle

_READERS: dict[str, Callable[[Path], Contents]] = {
    ".pth": read_pytorch,
    ".pt": read_pytorch,
    ".pkl": read_zoo_pickle,
    ".safetensors": read_safetensors,
}

#: Usual endings of files that hold weights.
WEIGHTS_SUFFIXES = tuple(_READERS)
#: The endings that stand for the formats, the one of all other names first.
FORMATS = (".pth", ".pkl", ".safetensors")


def read_contents(path: Path) -> Contents:
    """Check a weights file and see which sets of weights it holds, without loading them.

    Its ending says which format it is, as for Detectron2 itself, which reads with PyTorch whatever
    is no ``.pkl``; what the bytes look like does not count, so that the reader that a user trusts
    and this one cannot be made to disagree.

    Raises:
        CheckpointError: unreadable, truncated, or holds code.
    """
    path = Path(path)
    return _READERS.get(path.suffix, read_pytorch)(path)


def format_by_name(path: Path) -> str | None:
    """Which of :data:`FORMATS` a name says that a file has; None if it says nothing."""
    suffix = ".pth" if path.suffix == ".pt" else path.suffix
    return suffix if suffix in FORMATS else None


def weight_sets(path: Path) -> tuple[str | None, ...]:
    """The distinct sets of weights in a file, to be given to :func:`open_weights` one by one.

    Returns:
        None for the set that Detectron2 loads (a state dict, or what lies under ``model``), then
        the places of the others in the file, such as ``ema_state``. A set counts that shares
        names with Detectron2's, or that has ten tensors; tensors that are those of another set are
        no set of their own. Empty if there are no weights, as in the state of an optimizer. A set
        of this list need not be one that can be opened: a list of tensors has no names.

    Raises:
        CheckpointError: as :func:`read_contents`.
    """
    return read_contents(path).names


def open_weights(path: Path, member: str | None = None) -> WeightsFile:
    """Check a set of weights and learn its tensors' names and shapes, without loading them.

    Args:
        path: the weights file.
        member: which of its :func:`weight_sets`; what Detectron2 loads if None.

    Raises:
        CheckpointError: as :func:`read_contents`, no such set, or no state dict.
    """
    return read_contents(path).select(member)


def load_state_dict(path: Path, member: str | None = None) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU.

    Reads Detectron2's checkpoints (``{"model": ...}`` beside optimizer and schedule) and bare
    state dicts in ``.pth``, the model zoos' ``.pkl``, and ``.safetensors``. The ``module.`` that
    DataParallel puts before all names is taken off, as Detectron2 does.

    Args:
        path: the weights file.
        member: as for :func:`open_weights`.

    Raises:
        CheckpointError: as :func:`open_weights`.
    """
    return open_weights(path, member).load()


def describe_suffixes() -> str:
    """The endings of weights files, for messages."""
    return ", ".join(f"*{suffix}" for suffix in WEIGHTS_SUFFIXES)


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
