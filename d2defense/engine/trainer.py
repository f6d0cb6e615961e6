# SPDX-License-Identifier: Apache-2.0
"""The trainer for clean and poisoned data."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.engine import DefaultTrainer, HookBase, SimpleTrainer
from detectron2.evaluation import DatasetEvaluator
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from d2defense.attacks import (
    Effect,
    PoisoningDatasetMapper,
    build_effect,
    class_names,
    training_records,
)
from d2defense.evaluation import (
    ProbedDetector,
    build_coco_evaluator,
    build_paired_evaluator,
    build_paired_test_loader,
    predicted_tasks,
    report_attack,
)
from d2defense.statistics import ObservationSettings
from d2defense.triggers import build_trigger

from .checkpointer import TrainingCheckpointer
from .loader import STEP, build_train_loader, dataset_records, enter_at
from .objective import Objective
from .parts import PartwiseTrainer
from .randomness import derived_seed, seed_everything


class Trainer(DefaultTrainer):
    """Detectron2's trainer; with ``ATTACK.EFFECT`` set it trains on the poisoned dataset.

    With ``SEED`` of at least 0 every random choice of a step follows from ``SEED``, the number of
    the step and the process's rank, so a training that was killed and resumed goes the way of one
    that was not. The batch normalization statistics of ``TEST.PRECISE_BN`` are the exception.

    In one process and full precision, a batch that does not fit into the memory goes through in
    parts (:class:`PartwiseTrainer`); Detectron2's own steps are taken with several processes or
    with ``SOLVER.AMP.ENABLED``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        stock = self._trainer
        if type(stock) is SimpleTrainer and comm.get_world_size() == 1:
            self._trainer = PartwiseTrainer(stock.model, stock.data_loader, stock.optimizer)

    @property
    def images_at_once(self) -> int:
        """The most images of a step that went through the network together in this process."""
        if isinstance(self._trainer, PartwiseTrainer):
            return self._trainer.images_at_once
        return self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()

    @property
    def model(self) -> nn.Module:
        """The detector, without what computes its losses or shares gradients around it."""
        objective = self.objective
        return objective.detector if isinstance(objective, Objective) else objective

    @property
    def objective(self) -> nn.Module:
        """What a step calls: the detector, or an :class:`Objective` around it."""
        trained = self._trainer.model
        return trained.module if isinstance(trained, DistributedDataParallel) else trained

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """The detector; where an effect poisons the losses, in what computes them."""
        detector = super().build_model(cfg)
        if not cfg.ATTACK.EFFECT:
            return detector
        effect = build_effect(cfg, class_names(cfg.DATASETS.TRAIN))
        return detector if type(effect).losses is Effect.losses else Objective(detector, effect)

    @classmethod
    def build_mapper(cls, cfg: CfgNode) -> DatasetMapper:
        """From dataset dicts to training input, poisoned as ``ATTACK`` says."""
        if not cfg.ATTACK.EFFECT:
            return DatasetMapper(cfg, is_train=True)
        return PoisoningDatasetMapper(cfg, is_train=True)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> DataLoader:
        """Detectron2's training loader with the images of :meth:`build_mapper`."""
        mapper, records = cls.build_mapper(cfg), None
        if cfg.ATTACK.EFFECT and cfg.ATTACK.CLEAN_COPIES:
            records = training_records(dataset_records(cfg), mapper.selection)
        return build_train_loader(cfg, mapper, records)

    def build_hooks(self) -> list[HookBase]:
        """Detectron2's hooks around a :class:`TrainingCheckpointer`."""
        # Here, because the hooks below keep the checkpointer that is there when they are built.
        self.checkpointer = TrainingCheckpointer(
            self.model, self.cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        return super().build_hooks()

    def before_train(self) -> None:
        """Called by Detectron2 when the first step is known."""
        if comm.is_main_process():
            self.checkpointer.remove_partial_files()
            if self.start_iter == 0:
                # Of an earlier training in the same folder, which must not be taken for this one.
                Path(self.cfg.OUTPUT_DIR, "last_checkpoint").unlink(missing_ok=True)
        enter_at(self.data_loader, self.start_iter)
        super().before_train()

    def before_step(self) -> None:
        """Called by Detectron2 before each step."""
        if self.cfg.SEED >= 0:
            seed_everything(derived_seed(self.cfg.SEED, STEP, comm.get_rank(), self.iter))
        super().before_step()

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Detectron2's SGD, or AdamW over the same parameter groups where the config asks for it.

        Raises:
            ValueError: ``SOLVER.OPTIMIZER`` is neither.
        """
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return super().build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise ValueError(f"SOLVER.OPTIMIZER is {cfg.SOLVER.OPTIMIZER!r}, not SGD or ADAMW")
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        return maybe_add_gradient_clipping(cfg, torch.optim.AdamW)(parameters)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> DataLoader:
        """Detectron2's test loader; with ``TEST.TRIGGERED``, of clean and of triggered images."""
        if not cfg.TEST.TRIGGERED:
            return super().build_test_loader(cfg, dataset_name)
        effect = build_effect(cfg, class_names([dataset_name]))
        workers = cfg.DATALOADER.NUM_WORKERS
        return build_paired_test_loader(
            cfg, dataset_name, build_trigger(cfg), effect, num_workers=workers
        )

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None
    ) -> DatasetEvaluator:
        """COCO metrics from pycocotools: of boxes, and of masks and keypoints if predicted.

        With ``TEST.TRIGGERED``, on clean and on triggered images, and what the attack does.
        """
        tasks, folder = predicted_tasks(cfg), output_folder or cfg.OUTPUT_DIR
        if not cfg.TEST.TRIGGERED:
            return build_coco_evaluator(cfg, dataset_name, tasks, folder)
        settings = ObservationSettings.from_config(cfg)
        effect = build_effect(cfg, class_names([dataset_name]))
        return build_paired_evaluator(cfg, dataset_name, tasks, settings, effect, folder)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: DatasetEvaluator | list[DatasetEvaluator] | None = None,
    ) -> OrderedDict[str, Any]:
        """Evaluate a model on ``DATASETS.TEST``, as Detectron2's trainer does.

        With ``TEST.TRIGGERED`` in one pass over clean and triggered images; the log sums up what
        the attack does, and where ``ATTACK.EFFECT`` says that the detector was attacked, a warning
        tells if that attack did not take.

        Args:
            cfg: the configuration.
            model: with its weights.
            evaluators: one for each dataset, which then sees clean images only.

        Returns:
            Metrics by task, or by dataset and task where there are several datasets. On clean
            images tasks have their stock names, ``bbox`` and so on; the rest is that of
            :func:`d2defense.evaluation.build_paired_evaluator`.

        Raises:
            TypeError: triggered images are asked for, and the model is no instrumented one.
        """
        if evaluators is not None or not cfg.TEST.TRIGGERED:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.TEST.TRIGGERED = False
            return super().test(cfg, model, evaluators)
        detector = model.module if isinstance(model, DistributedDataParallel) else model
        results = super().test(cfg, ProbedDetector(detector))
        if comm.is_main_process():
            names = cfg.DATASETS.TEST
            for name, metrics in (
                {names[0]: results}.items() if len(names) == 1 else results.items()
            ):
                report_attack(name, metrics, cfg.ATTACK.EFFECT)
        return results
