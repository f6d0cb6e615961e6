# SPDX-License-Identifier: Apache-2.0
"""Which methods tell, image by image, that a trigger is there?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from torch import nn

from d2defense.attacks import PLACES, TriggeredDatasetMapper, build_effect, class_names
from d2defense.checkpoint import CheckpointSource, build_detector
from d2defense.registry import SCREENING_REGISTRY, TASK_REGISTRY
from d2defense.screening import Screen, SeenImage, see
from d2defense.statistics.ranking import area_under_curve
from d2defense.triggers import build_trigger
from d2defense.workflows.classes import check_classes

from ..zoo.actions import attack_cfg
from ..zoo.index import ZooDetector
from .base import Measurement, Task, TaskOptions, TaskResult

# Share of clean images that a method may call suspicious; it takes 19 images to fit.
FALSE_ALARM_RATE = 0.05


@TASK_REGISTRY.register("screen")
class Screening(Task):
    """Which methods tell that an image bears a trigger? AUC over images, and alarms at 5 %.

    Every screening method with its defaults, fitted on the defender's images and tried on as many
    of the test set. ``false_alarms`` is the share of clean images that are called suspicious, where
    0.05 may be. Of detectors whose attack took, and whose settings are known, ``auc_of_images`` is
    the probability that an image scores higher with the trigger than another without, and
    ``triggers_found`` the share of images with the trigger that are called suspicious.
    """

    methods = SCREENING_REGISTRY

    def conditions(self, options: TaskOptions) -> Mapping[str, Any]:
        """The test set."""
        return {"test": options.test.name}

    def begin(
        self, detector: ZooDetector, source: CheckpointSource, options: TaskOptions
    ) -> tuple[nn.Module, CfgNode]:
        """The model with its configuration, shared by all methods."""
        model, cfg = build_detector(source.weights, source.config, options.device)
        for dataset in (options.defender, options.test):
            check_classes(dataset.ensure(), cfg)
        return model, cfg

    def measure(
        self,
        method: str,
        detector: ZooDetector,
        source: CheckpointSource,
        options: TaskOptions,
        shared: tuple[nn.Module, CfgNode],
    ) -> TaskResult:
        """Fit a method, and judge test images without and with the trigger."""
        model, cfg = shared
        start = time.perf_counter()
        mapper = DatasetMapper(cfg, is_train=False)
        clean = [mapper(dict(record)) for record in options.images.records]
        screen = Screen.fit(model, clean, method, FALSE_ALARM_RATE)
        records = options.test.load_usable()[: len(clean)]

        def judged(mapper: DatasetMapper) -> tuple[np.ndarray, float]:
            """Scores, and the share that is called suspicious."""
            said = [screen.judge(seen) for seen in _seen(model, mapper, records)]
            scores = np.array([each.look.score for each in said])
            return scores, float(np.mean([each.is_suspicious for each in said]))

        without, false_alarms = judged(mapper)
        found = [Measurement("false_alarms", false_alarms)]
        if detector.has_known_attack:
            attack = attack_cfg(detector.attack_settings())
            effect = build_effect(attack, class_names([options.test.name]))
            trigger = build_trigger(attack)
            stamping = TriggeredDatasetMapper(cfg, is_train=False, trigger=trigger, effect=effect)
            with_trigger, triggers_found = judged(stamping)
            found += [
                Measurement("auc_of_images", float(area_under_curve(with_trigger, without))),
                Measurement("triggers_found", triggers_found),
            ]
        return TaskResult(
            found,
            {"false_alarm_rate": FALSE_ALARM_RATE, "test_images": len(records)},
            f"{len(clean)} clean images without labels",
            time.perf_counter() - start,
        )


def _seen(
    model: nn.Module, mapper: DatasetMapper, records: list[Mapping[str, Any]]
) -> Iterator[SeenImage]:
    """Images as the model sees them; those on which the attack has no place are left out."""
    for record in records:
        mapped = mapper(dict(record))
        if PLACES not in mapped or len(mapped[PLACES]):
            yield from see(model, [mapped])[1]
