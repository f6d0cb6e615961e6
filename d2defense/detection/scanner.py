# SPDX-License-Identifier: Apache-2.0
"""The scan of one detector: probe, reduce, score, decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from d2defense.attacks import Trigger
from d2defense.modeling import classification_modules
from d2defense.statistics import STATISTICS, Observation, ObservationSettings, Terms

from .bank import default_bank, load_bank, select_triggers
from .bootstrap import Bootstrap, percentile_interval
from .calibration import Calibration, Reference
from .classes import ClassMap, load_class_map
from .dominant import dominant_modules
from .images import CleanImage, max_objects
from .profile import Profile
from .score import DECISIONS, FALL, PAPER, Decision, checkpoint_score
from .sequential import SequentialTest
from .survey import Progress, Survey, Watch, survey
from .verdict import CLEAN, Verdict, decide


@dataclass(frozen=True)
class ScanSettings:
    """How a scan is done; the values of ``DEFENSE``.

    Attributes:
        triggers: stamped one after another on every object.
        observation: how proposals are reduced.
        max_images: of the clean dataset, drawn by ``seed``; 0 for all.
        seed: of the draw and of the bootstrap.
        confidence: level of the intervals.
        bootstrap_samples: resamples of the images.
        class_map: how the dataset's classes correspond to the detectors'; None where equal counts
            of classes mean the same classes.
        decision: name of the way to score.
        early_stop: whether to end once the verdict is certain.
        early_stop_error_rate: probability of either wrong verdict when a scan ends early.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    triggers: tuple[Trigger, ...] = field(default_factory=default_bank)
    observation: ObservationSettings = field(default_factory=ObservationSettings)
    max_images: int = 100
    seed: int = 0
    confidence: float = 0.95
    bootstrap_samples: int = 1000
    class_map: ClassMap | None = None
    decision: str = FALL.name
    early_stop: bool = False
    early_stop_error_rate: float = 0.05

    def __post_init__(self) -> None:
        for name, allowed in (
            ("max_images", self.max_images >= 0),
            ("seed", self.seed >= 0),
            ("confidence", 0 < self.confidence < 1),
            ("bootstrap_samples", self.bootstrap_samples >= 1),
            ("decision", self.decision in DECISIONS),
            ("early_stop_error_rate", 0 < self.early_stop_error_rate < 1),
        ):
            if not allowed:
                raise ValueError(f"{name} {getattr(self, name)} is out of range")
        if self.early_stop and self.decision == PAPER.name and not self.observation.topk:
            raise ValueError("a scan by tau over all proposals cannot end early: set topk")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ScanSettings:
        """The settings that ``DEFENSE`` gives.

        Raises:
            ValueError: a bank that cannot be read, a trigger that it does not have, or a value out
                of range.
        """
        node = cfg.DEFENSE
        return cls(
            triggers=select_triggers(node.TRIGGERS, load_bank(node.TRIGGER_BANK)),
            observation=ObservationSettings.from_config(cfg),
            max_images=node.MAX_IMAGES,
            seed=node.SEED,
            confidence=node.CONFIDENCE,
            bootstrap_samples=node.BOOTSTRAP_SAMPLES,
            class_map=load_class_map(node.CLASS_MAP) if node.CLASS_MAP else None,
            decision=node.DECISION,
            early_stop=node.EARLY_STOP,
            early_stop_error_rate=node.EARLY_STOP_ERROR_RATE,
        )

    def as_dict(self) -> dict[str, Any]:
        """The settings as one flat dictionary for result files; triggers by name."""
        flat = asdict(self)
        flat["triggers"] = [trigger.name for trigger in self.triggers]
        flat["class_map"] = self.class_map and self.class_map.source
        return flat | flat.pop("observation")


@dataclass(frozen=True)
class Inspection:
    """Everything a scan learns of one detector.

    Attributes:
        verdict: what is concluded.
        worst_trigger: the trigger of the largest score.
        dominant_modules: module groups that this trigger moves; empty for a clean detector.
        num_images: images that were probed.
        fields: the statistics as they stand in ``result.json``.
    """

    verdict: Verdict
    worst_trigger: str
    dominant_modules: list[str]
    num_images: int
    fields: dict[str, Any]


def inspect_detector(
    model: nn.Module,
    images: Sequence[CleanImage],
    settings: ScanSettings,
    calibration: Calibration,
    image_format: str,
    progress: Progress | None = None,
) -> Inspection:
    """Scan a detector with clean images.

    Args:
        model: an instrumented detector in eval mode.
        images: clean images with at least one object in all.
        settings: of the scan; checked against the calibration by the caller.
        calibration: profiles of clean detectors.
        image_format: channel order of the images, "BGR" or "RGB".
        progress: called once more than there are triggers, evenly over the work.
    """
    decision = DECISIONS[settings.decision]
    reference = calibration.reference_for([trigger.name for trigger in settings.triggers])
    certain: list[str] = []
    order, watch = None, None
    if settings.early_stop:
        order = np.random.default_rng(settings.seed).permutation(len(images)).tolist()
        watch = _watch(images, settings, decision, reference, certain)
    seen = survey(model, images, settings, image_format, progress, order, watch)
    stopped = certain[0] if certain else None
    inspection = _conclude(
        seen, settings, decision, reference, stopped, classification_modules(model)
    )
    if settings.early_stop:
        inspection.fields["early_stop"] = {
            "images": seen.num_images,
            "of": len(images),
            "certain": bool(certain),
        }
    return inspection


def profile_detector(
    name: str,
    sha256: str,
    model: nn.Module,
    images: Sequence[CleanImage],
    settings: ScanSettings,
    image_format: str,
) -> Profile:
    """The statistics of a detector alone, for calibration.

    Args:
        name: of the detector.
        sha256: of its weights file.
        model: as for :func:`inspect_detector`, like the rest.
        images: see there.
        settings: see there.
        image_format: see there.
    """
    return Profile.from_survey(name, sha256, survey(model, images, settings, image_format))


def _watch(
    images: Sequence[CleanImage],
    settings: ScanSettings,
    decision: Decision,
    reference: Reference,
    certain: list[str],
) -> Watch:
    """A watch that ends a survey when a verdict is certain, and puts that into ``certain``."""
    bound = max_objects(images) if decision.is_change else settings.observation.topk
    test = SequentialTest(
        reference.baseline + reference.threshold,
        decision,
        bound,
        settings.early_stop_error_rate,
    )
    so_far: list[Observation] = []

    def watch(clean: Observation, triggered: Sequence[Observation]) -> bool:
        so_far.append(clean)
        label = test.update(clean, triggered)
        if label == CLEAN:
            seen = Observation.join(so_far).terms
            numbers = {name: terms.ratio() for name, terms in seen.items()}
            ceiling = decision.ceiling(numbers, reference.baseline)
            # A detector that sees nothing to lose will not become certain with more images.
            label = label if ceiling > reference.threshold else None
        if label:
            certain.append(label)
        return bool(label)

    return watch


def _conclude(
    seen: Survey,
    settings: ScanSettings,
    decision: Decision,
    reference: Reference,
    certain: str | None,
    modules_of_classification: Sequence[str],
) -> Inspection:
    clean_terms = seen.clean.terms
    clean_numbers = {name: terms.ratio() for name, terms in clean_terms.items()}
    bootstrap = Bootstrap.draw(seen.num_images, settings.bootstrap_samples, settings.seed)
    score = checkpoint_score(
        seen.clean, seen.triggered, decision, reference.baseline, bootstrap, settings.confidence
    )
    ceiling = decision.ceiling(clean_numbers, reference.baseline)
    verdict = decide(score.value, score.interval, reference, ceiling, certain)
    triggers = [
        {
            "name": name,
            "score": score.of_triggers[name],
            "statistics": _compare(clean_terms, under.terms, bootstrap, settings.confidence),
        }
        for name, under in seen.triggered.items()
    ]
    worst_statistics = next(t["statistics"] for t in triggers if t["name"] == score.worst)
    modules = []
    if verdict.label != CLEAN:
        modules = dominant_modules(
            -worst_statistics["max_objectness"]["change"],
            -worst_statistics["max_foreground"]["change"],
            modules_of_classification,
        )
    fields = {
        "clean": {name: _number(value) for name, value in clean_numbers.items()},
        "triggers": triggers,
        "histogram": {
            "edges": torch.linspace(0, 1, settings.observation.num_bins + 1).tolist(),
            "clean": seen.clean.histogram.tolist(),
            "triggered": seen.triggered[score.worst].histogram.tolist(),
        },
    }
    return Inspection(verdict, score.worst, modules, seen.num_images, fields)


def _compare(
    clean: dict[str, Terms], triggered: dict[str, Terms], bootstrap: Bootstrap, confidence: float
) -> dict[str, dict[str, Any]]:
    comparison = {}
    for name in STATISTICS:
        before, after = clean[name].ratio(), triggered[name].ratio()
        change: Tensor = bootstrap(triggered[name]) - bootstrap(clean[name])
        interval = percentile_interval(change, confidence)
        comparison[name] = {
            "clean": _number(before),
            "triggered": _number(after),
            "change": _number(after - before),
            "interval": list(interval) if interval else None,
        }
    return comparison


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
