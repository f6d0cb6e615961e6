# SPDX-License-Identifier: Apache-2.0
"""The twin of one checkpoint within its scan, and its weights in the output."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from d2defense.checkpoint import CheckpointError, CheckpointSource
from d2defense.checkpoint.output_folder import CONFIG_NAME
from d2defense.checkpoint.safetensors_file import read_safetensors
from d2defense.detection import CleanImage
from d2defense.detection.survey import Progress
from d2defense.detection.twin import TwinError, TwinSettings, fine_tuned_twin
from d2defense.files import write_bytes
from d2defense.memory import is_out_of_memory
from d2defense.text import duration

from ..configs import publish_config
from .task import ScanTask

logger = logging.getLogger(__name__)

#: Folder of the twin in that of its checkpoint.
TWIN_FOLDER = "twin"

_WEIGHTS_NAME = "model_final.safetensors"
# Steps that are timed before it is said how long all will take; the first one warms up.
_TIMED_STEPS = 3


def make_twin(
    task: ScanTask,
    model: nn.Module,
    images: Sequence[CleanImage],
    progress: Progress,
    seconds: float = math.inf,
) -> nn.Module:
    """Fine-tune a copy of the suspect.

    Args:
        task: of the scan.
        model: the suspect.
        images: those of :func:`~d2defense.detection.twin_images.images_for_twin`.
        progress: told how much is done, 0..1.
        seconds: that it may take.

    Raises:
        TwinError: it cannot be made, or would take longer.
    """
    steps = task.settings.search.twin_steps
    settings = TwinSettings(steps=steps, seed=task.settings.seed)
    try:
        on_step = _announcing(steps, len(images), progress, seconds)
        return fine_tuned_twin(model, images, settings, on_step)
    except TwinError:
        raise
    except Exception as error:  # what trains an attacker's model can fail in any way
        if is_out_of_memory(error):
            raise
        words = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        raise TwinError(f"its fine-tuning failed: {words}") from error


def _announcing(
    steps: int, num_images: int, progress: Progress, seconds: float
) -> Callable[[], None]:
    """What is told after each step; says after the first ones how long all will take.

    It raises :class:`TwinError` where that is more than there is.
    """
    times: list[float] = []
    logger.info("fine-tuning its twin: %d steps on %d images", steps, num_images)

    def on_step() -> None:
        times.append(time.perf_counter())
        if len(times) == _TIMED_STEPS:
            each = (times[-1] - times[0]) / (_TIMED_STEPS - 1)
            logger.info("its twin will take about %s", duration(each * steps))
            if each * steps > seconds:
                raise TwinError(
                    f"it would take about {duration(each * steps)}, too much of the time limit "
                    "(--time-limit)"
                )
        progress(len(times) / steps)

    return on_step


def twin_bytes(twin: nn.Module) -> bytes:
    """The weights as a safetensors file."""
    # Copies, since tensors that share memory or lie in another order are refused.
    plain = torch.contiguous_format
    state = {
        name: each.detach().cpu().clone(memory_format=plain)
        for name, each in twin.state_dict().items()
    }
    return safetensors.torch.save(state)


def most_twin_bytes(weights: Path) -> int:
    """Largest size of a twin's weights: the suspect's file may hold half precision."""
    try:
        return 4 * weights.stat().st_size + (1 << 20)
    except OSError:
        return 0


def write_twin(folder: Path, source: CheckpointSource, name: str, content: bytes) -> None:
    """Write the twin of a checkpoint as a checkpoint, which a repair can go on from.

    It comes from the process that ran the suspect, so it is checked: it must be safetensors, no
    larger than the suspect may make it.

    Args:
        folder: of the checkpoint in the output.
        source: the suspect, whose configuration is the twin's.
        name: of the checkpoint, for messages.
        content: the weights file; nothing is written if it is empty.
    """
    if not content:
        return
    place = folder / TWIN_FOLDER
    try:
        _check(content)
        publish_config(source.config, place / CONFIG_NAME, source.trusted_config)
    except CheckpointError as error:
        logger.warning("%s: its twin is left out: %s", name, error.reason)
        return
    write_bytes(place / _WEIGHTS_NAME, content)


def _check(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / _WEIGHTS_NAME
        path.write_bytes(content)
        read_safetensors(path)
