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
from d2defense.checkpoint.tensors import nonfinite_tensors
from d2defense.checkpoint.weights import open_weights
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
    * ``.pth`` files are read with PyTorch's unpickler for tensors and plain containers, the model
      zoos' ``.pkl`` without unpickling (:func:`d2defense.checkpoint.weights.open_weights`). As
      always in Detectron2's training, weights that fit only partly are loaded with a warning.
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
        broken = nonfinite_tensors(self.model.state_dict())
        if broken:
            raise FloatingPointError(f"{len(broken)} tensors are not finite, first {broken[0]}")
        super().save(name, **kwargs)

    def remove_partial_files(self) -> None:
        """Remove what a kill in the middle of writing left of a checkpoint."""
        for path in Path(self.save_dir).glob(".model_*.pth.*"):
            path.unlink(missing_ok=True)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith((".pkl", ".safetensors")):
            return super()._load_file(filename)
        file = open_weights(Path(filename))
        return {
            "model": file.load(),
            "matching_heuristics": file.matching_heuristics,
            "__author__": "Caffe2" if file.caffe2 else "",
        }

    def _torch_load(self, f: str) -> Any:
        try:
            return torch.load(f, map_location="cpu", weights_only=True)
        except OSError as error:
            raise CheckpointError(f, error.strerror or str(error)) from None
        except Exception:  # pickle, zip, storage and allocation errors
            reason = "not a PyTorch checkpoint of tensors and plain containers; it was not executed"
            raise CheckpointError(f, reason) from None
