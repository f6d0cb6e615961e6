# SPDX-License-Identifier: Apache-2.0
"""Which removal methods remove?"""

from __future__ import annotations

from d2defense.checkpoint import CheckpointSource
from d2defense.registry import REMOVAL_REGISTRY, TASK_REGISTRY
from d2defense.workflows.fine_tuning import FineTuningOptions, fine_tune

from ..zoo.actions import attack_cfg, measure_attack
from ..zoo.index import ZooDetector
from .base import Measurement, Task, TaskOptions, TaskResult


@TASK_REGISTRY.register("repair")
class Repairing(Task):
    """Which methods remove a backdoor? ASR, TDR and AP after the repair, and before.

    Every removal method with its defaults, on the defender's whole set. Only detectors whose
    attack took are repaired. ``asr``, ``tdr`` and ``ap`` are of the repaired detector, with
    ``_before`` of the one that was given.
    """

    methods = REMOVAL_REGISTRY

    def applies(self, detector: ZooDetector) -> bool:
        """Whether there is an attack to remove, with settings to measure it by."""
        return detector.has_known_attack

    def measure(
        self,
        method: str,
        detector: ZooDetector,
        source: CheckpointSource,
        options: TaskOptions,
        shared: None,
    ) -> TaskResult:
        """Repair, and measure what is left of the attack."""
        output = options.work / "repair" / f"{detector.name}-{method}"
        done = fine_tune(
            source,
            options.defender,
            output,
            FineTuningOptions(method=method, seed=options.seed),
            options.device,
        )
        cfg = attack_cfg(detector.attack_settings())
        found = []
        for path, suffix in ((output, ""), (source.path, "_before")):
            seen = measure_attack(path, cfg, options.test, options.device)
            found += [
                Measurement(f"asr{suffix}", seen["asr"]),
                Measurement(f"tdr{suffix}", seen["tdr"]),
                Measurement(f"ap{suffix}", seen["clean"]["AP"]),
            ]
        return TaskResult(
            found,
            {"modules": list(done.modules), "batch_size": done.batch_size},
            f"{len(options.defender.load())} images to train on",
            done.seconds,
        )
