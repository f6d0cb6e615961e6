# SPDX-License-Identifier: Apache-2.0
"""The scan of one detector: probe, reduce, score, decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from d2defense.attacks import Trigger
from d2defense.modeling import classification_modules
from d2defense.ops import Terms

from .bank import default_bank, load_bank, select_triggers
from .bootstrap import Bootstrap, percentile_interval
from .calibration import Calibration
from .classes import ClassMap, load_class_map
from .dominant import dominant_modules
from .images import CleanImage
from .observe import STATISTICS, Observation, ObservationSettings
from .score import checkpoint_score, trigger_fall
from .survey import Progress, survey
from .verdict import Verdict, decide


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

    def __post_init__(self) -> None:
        for name, allowed in (
            ("max_images", self.max_images >= 0),
            ("seed", self.seed >= 0),
            ("confidence", 0 < self.confidence < 1),
            ("bootstrap_samples", self.bootstrap_samples >= 1),
        ):
            if not allowed:
                raise ValueError(f"{name} {getattr(self, name)} is out of range")

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
            observation=ObservationSettings(
                batch_size=node.BATCH_SIZE,
                epsilon=node.EPSILON,
                topk=node.TOPK,
                objectness_floor=node.OBJECTNESS_FLOOR,
                iou_threshold=node.IOU_THRESHOLD,
            ),
            max_images=node.MAX_IMAGES,
            seed=node.SEED,
            confidence=node.CONFIDENCE,
            bootstrap_samples=node.BOOTSTRAP_SAMPLES,
            class_map=load_class_map(node.CLASS_MAP) if node.CLASS_MAP else None,
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
        fields: the statistics as they stand in ``result.json``.
    """

    verdict: Verdict
    worst_trigger: str
    dominant_modules: list[str]
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
        settings: of the scan.
        calibration: scores of clean detectors.
        image_format: channel order of the images, "BGR" or "RGB".
        progress: called after the clean pass and after every trigger.
    """
    clean, triggered = survey(model, images, settings, image_format, progress)
    return _conclude(clean, triggered, settings, calibration, classification_modules(model))


def score_detector(
    model: nn.Module,
    images: Sequence[CleanImage],
    settings: ScanSettings,
    image_format: str,
) -> float:
    """The score of a detector alone, for calibration; arguments as :func:`inspect_detector`."""
    clean, triggered = survey(model, images, settings, image_format)
    return max(trigger_fall(clean.terms, under.terms) for under in triggered.values())


def _conclude(
    clean: Observation,
    triggered: dict[str, Observation],
    settings: ScanSettings,
    calibration: Calibration,
    modules_of_classification: Sequence[str],
) -> Inspection:
    clean_terms = clean.terms
    triggered_terms = {name: observation.terms for name, observation in triggered.items()}
    num_images = len(clean_terms["tau"].numerator)
    bootstrap = Bootstrap.draw(num_images, settings.bootstrap_samples, settings.seed)
    score, interval, worst = checkpoint_score(
        clean_terms, triggered_terms, bootstrap, settings.confidence
    )
    verdict = decide(score, interval, calibration, clean_terms["max_foreground"].ratio())
    triggers = [
        {
            "name": name,
            "score": trigger_fall(clean_terms, terms),
            "statistics": _compare(clean_terms, terms, bootstrap, settings.confidence),
        }
        for name, terms in triggered_terms.items()
    ]
    worst_statistics = next(t["statistics"] for t in triggers if t["name"] == worst)
    modules = []
    if verdict.label != "clean":
        modules = dominant_modules(
            -worst_statistics["max_objectness"]["change"],
            -worst_statistics["max_foreground"]["change"],
            modules_of_classification,
        )
    fields = {
        "clean": {name: _number(terms.ratio()) for name, terms in clean_terms.items()},
        "triggers": triggers,
        "histogram": {
            "edges": torch.linspace(0, 1, settings.observation.num_bins + 1).tolist(),
            "clean": clean.histogram.tolist(),
            "triggered": triggered[worst].histogram.tolist(),
        },
    }
    return Inspection(verdict, worst, modules, fields)


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
