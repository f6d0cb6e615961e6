# SPDX-License-Identifier: Apache-2.0
"""Fine-tuning a suspicious checkpoint by a removal method, into a folder of its own."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

from d2defense.checkpoint import CheckpointSource, load_config, save_state_dict
from d2defense.checkpoint.output_folder import CONFIG_NAME, FINAL_WEIGHTS_NAME
from d2defense.config import add_part_config, merge_overrides
from d2defense.data import DatasetSource
from d2defense.devices import resolve_device
from d2defense.registry import REMOVAL_REGISTRY
from d2defense.removal import RemovalTrainer, removal_config
from d2defense.text import WORTH_SAYING, duration

from .configs import publish_config
from .labels import prepare_training
from .unfinished import LAST_CHECKPOINT, FineTuningRun, RecentCheckpoint

# Of what makes objects vanish a reset beside patches removes no more, and costs AP.
DEFAULT_METHOD = "patch_augmentation"
_STEPS = "REMOVAL.SOLVER.MAX_ITER"
# How many steps are timed before it is said how long all will take.
_TIMED_STEPS = 2


@dataclass(frozen=True)
class FineTuned:
    """What was done to a checkpoint.

    Attributes:
        output_dir: Detectron2 output folder of the repaired checkpoint.
        modules: module groups that were reset.
        seconds: wall clock of the fine-tuning.
        batch_size: images of a step.
        images_at_once: how many of them at most went through the network together.
    """

    output_dir: Path
    modules: tuple[str, ...]
    seconds: float
    batch_size: int
    images_at_once: int

    @property
    def batch(self) -> str:
        """The images of a step in words."""
        return describe_batch(self.batch_size, self.images_at_once)


@dataclass(frozen=True)
class FineTuningOptions:
    """How a checkpoint is fine-tuned.

    Attributes:
        modules: module groups to reset, ``REMOVAL.MODULES`` if None.
        method: name in ``REMOVAL_REGISTRY``.
        seed: of the reset and of the training.
        overrides: KEY VALUE pairs of the configuration, such as ``REMOVAL.SOLVER.MAX_ITER 500``.
        keep_every: also keep the weights every so many steps; 0 for the final ones only.
    """

    modules: Sequence[str] | None = None
    method: str = DEFAULT_METHOD
    seed: int = 0
    overrides: Sequence[str] = ()
    keep_every: int = 0


def fine_tune(
    source: CheckpointSource,
    dataset: DatasetSource,
    output_dir: Path,
    options: FineTuningOptions | None = None,
    device: str | None = None,
    say: Callable[[str], None] | None = None,
    resume: bool = False,
) -> FineTuned:
    """Fine-tune a checkpoint on the defender's set; the original stays untouched.

    Every minute a checkpoint is written from which another call can go on; none is left in the end.

    Args:
        source: a checkpoint without an error.
        dataset: the defender's set: clean labelled images.
        output_dir: gets ``config.yaml`` (the original's, byte by byte unless it builds on others),
            ``model_final.pth``, ``metrics.json`` and ``log.txt``.
        options: the defaults if None.
        device: where to train; the config's choice if None.
        say: told after the first steps how long all of them will take.
        resume: go on from what an earlier call for the same has left in the output folder, if
            anything; what it has finished is not done again.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        DatasetError: the dataset cannot be used, or has not what the detector learns
            (:func:`~.labels.prepare_training`).
        ValueError: an unknown method, module group or override, or an output folder that is the
            checkpoint's own, or that holds another fine-tuning where this is to be resumed.
    """
    options = options or FineTuningOptions()
    cfg = fine_tuning_config(source, dataset, output_dir, options, device)
    output_dir.mkdir(parents=True, exist_ok=True)
    run = FineTuningRun(cfg)
    known = run.begin(resume)
    if known is not None:
        return FineTuned(output_dir, **known | {"modules": tuple(known["modules"])})
    recent = RecentCheckpoint()
    with log_to_file(output_dir / "log.txt", append=resume):
        seed_all_rng(options.seed)
        trainer = RemovalTrainer(cfg)
        with tqdm(total=cfg.SOLVER.MAX_ITER, desc=options.method, unit="step", disable=None) as bar:
            trainer.register_hooks([ProgressHook(bar, say), recent])
            trainer.resume_or_load(resume=resume)
            if trainer.start_iter and say is not None:
                say(f"Going on from step {trainer.start_iter} of {cfg.SOLVER.MAX_ITER}.")
            trainer.train()
    (output_dir / LAST_CHECKPOINT).unlink(missing_ok=True)
    save_state_dict(output_dir / FINAL_WEIGHTS_NAME, trainer.checkpointer.model.state_dict())
    publish_config(source.config, output_dir / CONFIG_NAME)
    result = {
        "modules": list(trainer.modules),
        "seconds": recent.seconds,
        "batch_size": cfg.SOLVER.IMS_PER_BATCH,
        "images_at_once": trainer.images_at_once,
    }
    run.end(result)
    return FineTuned(output_dir, **result | {"modules": trainer.modules})


def describe_batch(batch_size: int, images_at_once: int) -> str:
    """The images of a training's step in words."""
    if images_at_once < batch_size:
        return f"{batch_size} images a step, {images_at_once} at a time"
    return f"{batch_size} images a step"


def fine_tuning_config(
    source: CheckpointSource,
    dataset: DatasetSource,
    output_dir: Path,
    options: FineTuningOptions,
    device: str | None = None,
) -> CfgNode:
    """The configuration of a fine-tuning run; arguments and errors as of :func:`fine_tune`."""
    require_other_folder(source, output_dir)
    REMOVAL_REGISTRY.get(options.method)
    cfg = load_config(source.config, device=device)
    add_part_config(cfg)
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    merge_overrides(cfg, options.overrides)
    num_images = prepare_training(dataset, cfg)
    if _STEPS not in options.overrides:
        cfg.REMOVAL.SOLVER.MAX_ITER = most_steps(cfg, num_images)
    cfg = removal_config(
        cfg,
        source.weights,
        dataset.ensure(),
        output_dir,
        cfg.REMOVAL.MODULES if options.modules is None else options.modules,
        options.method,
        num_images,
    )
    cfg.SEED = cfg.REMOVAL.SEED = options.seed
    if options.keep_every:
        cfg.SOLVER.CHECKPOINT_PERIOD = options.keep_every
    cfg.freeze()
    return cfg


def most_steps(cfg: CfgNode, num_images: int) -> int:
    """Steps of a fine-tuning: fewer where it would go through its images too often.

    What is learnt by heart of few images costs AP on others (``docs/removal.md``).

    Args:
        cfg: has ``REMOVAL.MAX_PASSES`` and ``REMOVAL.SOLVER``.
        num_images: to learn from.
    """
    solver, passes = cfg.REMOVAL.SOLVER, cfg.REMOVAL.MAX_PASSES
    if not passes:
        return int(solver.MAX_ITER)
    return min(solver.MAX_ITER, math.ceil(passes * num_images / solver.IMS_PER_BATCH))


def require_other_folder(source: CheckpointSource, output_dir: Path) -> None:
    """Make sure that nothing is written into a checkpoint's own folder.

    Raises:
        ValueError: the output folder is that one.
    """
    if output_dir.resolve() == source.weights.parent.resolve():
        raise ValueError(f"{output_dir}: is the folder of the checkpoint itself")


@contextmanager
def log_to_file(path: Path, append: bool = False) -> Iterator[None]:
    """Send the messages of Detectron2 and d2defense to a file instead of the terminal."""
    handler = logging.FileHandler(path, mode="a" if append else "w", encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s %(name)s]: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "d2defense")]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers[:] = handlers
            logger.setLevel(level)
            logger.propagate = propagate
        handler.close()


class ProgressHook(HookBase):
    """Moves a progress bar by one with every training step, and says how long all will take.

    Args:
        bar: its total is the number of steps.
        say: told so after the first steps, unless it is soon over.
    """

    def __init__(self, bar: tqdm, say: Callable[[str], None] | None = None) -> None:
        self.bar = bar
        self.say = say
        self._steps = 0
        self._start = 0.0

    def before_train(self) -> None:
        """Called by the trainer: steps that were taken before a training was resumed count."""
        self.bar.update(self.trainer.start_iter)

    def after_step(self) -> None:
        """Called by the trainer."""
        self.bar.update()
        self._steps += 1
        if self._steps == 1:
            # The first step is slower than others.
            self._start = time.monotonic()
        elif self._steps == 1 + _TIMED_STEPS:
            self._announce((time.monotonic() - self._start) / _TIMED_STEPS)

    def _announce(self, each: float) -> None:
        steps = self.bar.total - self.trainer.start_iter
        seconds = each * steps
        if self.say is not None and seconds >= WORTH_SAYING:
            with tqdm.external_write_mode():
                self.say(f"{steps} steps, {each:.2g} s each: about {duration(seconds)} in all")
