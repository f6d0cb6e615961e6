# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that are whole, finite, and read without running anything in them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import nn

from d2defense.checkpoint.errors import CheckpointError
from d2defense.files import open_whole


class _WholeFiles:
    """Detectron2's path manager; files it writes appear under their name when they are complete."""

    @contextmanager
    def open(self, path: str, mode: str = "r", **kwargs: Any) -> Iterator[IO[Any]]:
        opener = open_whole if mode.startswith("w") else PathManager.open
        with opener(path, mode, **kwargs) as stream:
            yield stream

    def __getattr__(self, name: str) -> Any:
        return getattr(PathManager, name)


class TrainingCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer for the checkpoints that a training writes and resumes from.

    * Checkpoints and ``last_checkpoint`` are written whole: a kill at any moment leaves the
      previous ones as they were.
    * Weights that are not finite are not saved, so that ``last_checkpoint`` never names them.
    * ``.pth`` files are read with PyTorch's unpickler for tensors and plain containers.
    """

    def __init__(self, model: nn.Module, save_dir: str = "", **kwargs: Any) -> None:
        """As ``DetectionCheckpointer``."""
        super().__init__(model, save_dir, **kwargs)
        self.path_manager = _WholeFiles()

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` and make it the last checkpoint.

        Raises:
            FloatingPointError: a weight or buffer of the model is infinite or NaN.
        """
        broken = [
            key
            for key, value in self.model.state_dict().items()
            if value.is_floating_point() and not bool(torch.isfinite(value).all())
        ]
        if broken:
            raise FloatingPointError(f"{len(broken)} tensors are not finite, first {broken[0]}")
        super().save(name, **kwargs)

    def remove_partial_files(self) -> None:
        """Remove what a kill in the middle of writing left of a checkpoint."""
        for path in Path(self.save_dir).glob(".model_*.pth.*"):
            path.unlink(missing_ok=True)

    def _torch_load(self, f: str) -> Any:
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle, zip, storage and allocation errors
            reason = str(error).split("\n", 1)[0]
            raise CheckpointError(f, f"not a safe PyTorch checkpoint: {reason}") from None
