# SPDX-License-Identifier: Apache-2.0
"""What a fine-tuning that was cut short has left, for one that goes on from there."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from d2defense.checkpoint import file_sha256
from d2defense.checkpoint.output_folder import FINAL_WEIGHTS_NAME
from d2defense.data.fingerprint import dataset_fingerprint
from d2defense.engine.loader import dataset_records
from d2defense.files import write_json

#: In the output folder: what is done there, and how far it has come.
RUN_FILE = "fine_tuning.json"
#: Names the checkpoint to go on from, as Detectron2 has it.
LAST_CHECKPOINT = "last_checkpoint"
# Seconds between two checkpoints: what a kill can cost.
_PERIOD = 60.0
# Name of a checkpoint by its step.
_CHECKPOINT = "unfinished_{}"


class FineTuningRun:
    """A fine-tuning as its output folder knows it.

    Args:
        cfg: of the fine-tuning; its dataset is registered.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.folder = Path(cfg.OUTPUT_DIR)
        self._key = _key(cfg)

    def begin(self, resume: bool) -> dict[str, Any] | None:
        """Get ready to fine-tune.

        Args:
            resume: go on from what is there.

        Returns:
            What :meth:`end` was given, if all is done already; else None.

        Raises:
            ValueError: something else was begun in the folder, so there is nothing to go on from.
        """
        before = self._read() if resume else {}
        if before and before.get("key") != self._key:
            raise ValueError(
                f"{self.folder}: holds a fine-tuning of another checkpoint, or with other images "
                "or settings; without --resume it is begun anew"
            )
        result = before.get("result")
        if result is not None and self._weights() == before.get("sha256"):
            return result
        if not before:
            # Of an earlier run, which must not be taken for this one.
            (self.folder / LAST_CHECKPOINT).unlink(missing_ok=True)
            _discard_checkpoints(self.folder)
        self._write()
        return None

    def end(self, result: dict[str, Any]) -> None:
        """Note that all is done, and what it came to."""
        self._write(result=result, sha256=self._weights())
        _discard_checkpoints(self.folder)

    def _weights(self) -> str | None:
        path = self.folder / FINAL_WEIGHTS_NAME
        return file_sha256(path) if path.is_file() else None

    def _read(self) -> dict[str, Any]:
        try:
            known = json.loads((self.folder / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def _write(self, **more: Any) -> None:
        write_json(self.folder / RUN_FILE, {"key": self._key, **more})


def _key(cfg: CfgNode) -> str:
    """SHA-256 of all that the weights follow from: settings, checkpoint, images and labels."""
    files = [file_sha256(Path(cfg.MODEL.WEIGHTS)), dataset_fingerprint(dataset_records(cfg))]
    settings = cfg.clone()
    settings.defrost()
    # Where something lies does not matter.
    settings.OUTPUT_DIR = settings.MODEL.WEIGHTS = ""
    settings.DATASETS.TRAIN = ()
    return hashlib.sha256("\n".join([settings.dump(), *files]).encode()).hexdigest()


class RecentCheckpoint(HookBase):
    """Writes a checkpoint every minute to go on from, and keeps the last one only."""

    def __init__(self) -> None:
        self._start = self._saved = time.monotonic()
        self._before = 0.0

    @property
    def seconds(self) -> float:
        """How long the training has taken so far, up to the checkpoint it was resumed from too."""
        return self._before + time.monotonic() - self._start

    def after_step(self) -> None:
        """Called by the trainer."""
        step, checkpointer = self.trainer.iter, self.trainer.checkpointer
        if time.monotonic() - self._saved < _PERIOD or step + 1 >= self.trainer.max_iter:
            return
        name = _CHECKPOINT.format(f"{step:07d}")
        checkpointer.save(name, iteration=step)
        _discard_checkpoints(Path(checkpointer.save_dir), but=name)
        self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What a training that is resumed knows of the time before."""
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._before = state_dict["seconds"]


def _discard_checkpoints(folder: Path, but: str = "") -> None:
    for path in folder.glob(_CHECKPOINT.format("*") + ".pth"):
        if path.stem != but:
            path.unlink(missing_ok=True)
