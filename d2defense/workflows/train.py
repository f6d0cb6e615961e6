# SPDX-License-Identifier: Apache-2.0
"""Training from a config file."""

from __future__ import annotations

import argparse
import logging
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import setup_logger

import d2defense.checkpoint.specimens  # noqa: F401 makes specimen:// known
from d2defense.attacks import build_effect, class_names
from d2defense.checkpoint import load_weights
from d2defense.checkpoint.output_folder import CONFIG_NAME
from d2defense.config import get_d2defense_cfg, merge_config_file
from d2defense.devices import resolve_device
from d2defense.engine import Trainer, TrainingCheckpointer, provenance
from d2defense.files import write_bytes
from d2defense.memory import keep_freed_memory
from d2defense.modeling import instrument_config
from d2defense.registry import EFFECT_REGISTRY
from d2defense.removal import RemovalTrainer
from d2defense.statistics import ObservationSettings
from d2defense.triggers import build_trigger
from d2defense.user_modules import import_modules

from .labels import prepare_evaluation, prepare_training
from .own_data import OwnData

# Never 1, which is a scan's verdict.
FAILED, INTERRUPTED = 2, 130


def launch_training(args: argparse.Namespace) -> int:
    """Train or evaluate in as many processes as asked for.

    Args:
        args: the options of ``d2defense train``.

    Returns:
        Exit code: 0; 2 after one line on what is wrong with the config, the data or the weights,
        or after a loss or weights that were not finite; 130 after an interrupt.
    """
    try:
        cfg = setup_config(args)
        _check_machine(cfg, args)
    except (OSError, KeyError, ValueError, AssertionError, yaml.YAMLError) as error:
        # No logger has a handler before default_setup.
        _complain(f"{args.config_file}: {error}")
        return FAILED
    if cfg.SEED < 0 and args.num_machines == 1 and not args.eval_only:
        args.opts = [*args.opts, "SEED", str(_drawn_seed(cfg, args.resume))]
    num_gpus = args.num_gpus if torch.cuda.is_available() else 0
    try:
        launch(
            _main,
            max(1, num_gpus),
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except SystemExit as ended:
        return int(ended.code or 0)
    except torch.multiprocessing.ProcessExitedException as ended:
        return ended.exit_code
    return 0


def setup_config(args: argparse.Namespace) -> CfgNode:
    """The frozen configuration of a training run.

    Raises:
        OSError, KeyError, ValueError, AssertionError, yaml.YAMLError: what Detectron2 raises for a
            file, key or value that is wrong; ``ValueError`` also for an unknown attack or dataset,
            for weights that are not there, for a detector that cannot be probed and for a trigger
            or statistic that evaluation could not measure.
    """
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, args.config_file)
    own_data = OwnData.from_options(
        args.dataset_json,
        args.image_root,
        args.test_dataset_json,
        args.test_image_root,
        args.skip_unusable,
    )
    own_data.apply(cfg)
    cfg.merge_from_list(args.opts)
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    if cfg.ATTACK.EFFECT and cfg.ATTACK.EFFECT not in EFFECT_REGISTRY:
        known = ", ".join(EFFECT_REGISTRY.choices())
        raise ValueError(f"ATTACK.EFFECT is {cfg.ATTACK.EFFECT!r}, none of {known}")
    if cfg.TEST.TRIGGERED and cfg.DATASETS.TEST:
        # Else these would be found wrong by the first evaluation, after the training.
        build_trigger(cfg)
        ObservationSettings.from_config(cfg)
    for key, needed in (("TRAIN", not args.eval_only), ("TEST", args.eval_only)):
        if needed and not cfg.DATASETS[key]:
            raise ValueError(f"DATASETS.{key} is empty, and no --dataset-json takes its place")
    _check_weights(cfg, args)
    if not args.eval_only:
        for name in cfg.DATASETS.TRAIN:
            prepare_training(own_data.source(name), cfg, decode=False)
    for name in cfg.DATASETS.TEST:
        prepare_evaluation(own_data.source(name), cfg, decode=False)
    if cfg.ATTACK.EFFECT or cfg.TEST.TRIGGERED:
        # Its classes are known only now.
        build_effect(cfg, class_names(cfg.DATASETS.TRAIN or cfg.DATASETS.TEST))
    cfg = instrument_config(cfg)
    cfg.freeze()
    return cfg


def trainer_class(cfg: CfgNode) -> type[Trainer]:
    """The trainer that ``REMOVAL.METHOD`` asks for."""
    return RemovalTrainer if cfg.REMOVAL.METHOD else Trainer


def _last_checkpoint(cfg: CfgNode) -> str:
    """Path of the last checkpoint in ``OUTPUT_DIR``; empty if there is none."""
    return TrainingCheckpointer(torch.nn.Module(), cfg.OUTPUT_DIR).get_checkpoint_file()


def _check_weights(cfg: CfgNode, args: argparse.Namespace) -> None:
    weights = cfg.MODEL.WEIGHTS
    if args.resume and _last_checkpoint(cfg):
        return
    if not weights and args.eval_only:
        raise ValueError("nothing to evaluate: set MODEL.WEIGHTS, or give --resume")
    if cfg.REMOVAL.METHOD and not weights:
        raise ValueError("MODEL.WEIGHTS: no weights file '' to start from")
    # Of a URL, "detectron2://..." among them, only the download can tell.
    if weights and "://" not in weights and not Path(weights.partition("?")[0]).is_file():
        raise ValueError(f"MODEL.WEIGHTS: no weights file {weights!r} to start from")


def _check_machine(cfg: CfgNode, args: argparse.Namespace) -> None:
    gpus = torch.cuda.device_count()
    if gpus and args.num_gpus > gpus:
        raise ValueError(f"--num-gpus is {args.num_gpus}, but this machine has {gpus}")
    if cfg.SOLVER.AMP.ENABLED and not gpus and not args.eval_only:
        raise ValueError("SOLVER.AMP.ENABLED needs a GPU, and PyTorch sees none")
    output = Path(cfg.OUTPUT_DIR)
    output.mkdir(parents=True, exist_ok=True)
    # Made and removed at once: permission bits do not tell what a mount or root may do.
    probe = output / ".writable"
    probe.touch()
    probe.unlink()


def _drawn_seed(cfg: CfgNode, resume: bool) -> int:
    """A seed for a config that asks for a random one; a resumed training keeps the one it drew."""
    before = provenance.read_provenance(Path(cfg.OUTPUT_DIR)).get("seed") if resume else None
    return before if isinstance(before, int) and before >= 0 else secrets.randbelow(2**31)


@contextmanager
def _quiet_divergence() -> Iterator[None]:
    """Keep Detectron2 from logging the traceback of what ends in one line."""

    def is_no_divergence(record: logging.LogRecord) -> bool:
        kind = record.exc_info[0] if record.exc_info else None
        return kind is None or not issubclass(kind, FloatingPointError)

    logger = logging.getLogger("detectron2.engine.train_loop")
    logger.addFilter(is_no_divergence)
    try:
        yield
    finally:
        logger.removeFilter(is_no_divergence)


def _complain(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def _main(args: argparse.Namespace) -> None:
    """What each process runs.

    Raises:
        SystemExit: with the exit code, after one line from the first process.
    """
    import_modules(args.imports)
    keep_freed_memory()
    cfg = setup_config(args)
    config = Path(cfg.OUTPUT_DIR) / CONFIG_NAME
    trained_with = config.read_bytes() if args.eval_only and config.is_file() else None
    default_setup(cfg, args)
    if trained_with is not None and comm.is_main_process():
        # Evaluation must not change what the weights in this folder were trained with.
        write_bytes(config, trained_with)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="d2defense")
    try:
        if args.eval_only:
            _evaluate(cfg, args)
        else:
            _train(cfg, args)
    except _Ended as ended:
        if comm.is_main_process():
            sys.stdout.flush()
            print(ended, file=sys.stderr)
        raise SystemExit(ended.code) from None


class _Ended(Exception):
    """A run that ended early, with the line to print."""

    def __init__(self, code: int, line: str) -> None:
        self.code = code
        super().__init__(" ".join(line.split()))


def _evaluate(cfg: CfgNode, args: argparse.Namespace) -> None:
    try:
        trainer_type = trainer_class(cfg)
        model = build_model(cfg)
        path = args.resume and _last_checkpoint(cfg)
        # Not Detectron2's loader: it evaluates whatever part of the weights fits.
        load_weights(model, Path(path or PathManager.get_local_path(cfg.MODEL.WEIGHTS)))
    except (OSError, ValueError, AssertionError) as error:
        raise _Ended(FAILED, f"error: {error}") from None
    results = trainer_type.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)


def _train(cfg: CfgNode, args: argparse.Namespace) -> None:
    try:
        trainer = trainer_class(cfg)(cfg)
        trainer.resume_or_load(resume=args.resume)
        first, unfinished = trainer.start_iter, trainer.start_iter < trainer.max_iter
        if comm.is_main_process() and unfinished:
            provenance.write_start(cfg, first)
    except (OSError, ValueError, AssertionError) as error:
        raise _Ended(FAILED, f"error: {error}") from None
    start = time.perf_counter()
    try:
        with _quiet_divergence():
            trainer.train()
    except FloatingPointError as error:
        raise _Ended(
            FAILED,
            f"error: training stopped at iteration {trainer.iter}: {error}; last good checkpoint: "
            f"{_last_checkpoint(cfg) or 'none'}",
        ) from None
    except KeyboardInterrupt:
        last = _last_checkpoint(cfg)
        rest = f"--resume goes on from {last}" if last else "there is no checkpoint yet"
        raise _Ended(INTERRUPTED, f"interrupted at iteration {trainer.iter}; {rest}") from None
    if comm.is_main_process() and unfinished:
        provenance.write_end(Path(cfg.OUTPUT_DIR), trainer.max_iter, time.perf_counter() - start)
