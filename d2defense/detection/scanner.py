# SPDX-License-Identifier: Apache-2.0
"""The scan of one detector: probe, reduce, score, decide."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from d2defense.attacks import Trigger
from d2defense.modeling import classification_modules
from d2defense.ops import Terms

from .bank import default_bank, load_bank, select_triggers
from .bootstrap import STATISTICS, Bootstrap, image_terms, percentile_interval
from .calibration import Calibration
from .dominant import dominant_modules
from .images import CleanImage
from .observe import Observation, ObservationSettings, observe
from .score import checkpoint_score, trigger_fall
from .verdict import Verdict, decide

Progress = Callable[[], None]


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

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    triggers: tuple[Trigger, ...] = field(default_factory=default_bank)
    observation: ObservationSettings = field(default_factory=ObservationSettings)
    max_images: int = 100
    seed: int = 0
    confidence: float = 0.95
    bootstrap_samples: int = 1000

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
        )

    def as_dict(self) -> dict[str, Any]:
        """The settings as one flat dictionary for result files; triggers by name."""
        flat = asdict(self)
        flat["triggers"] = [trigger.name for trigger in self.triggers]
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
    match_classes: bool = True,
    progress: Progress | None = None,
) -> Inspection:
    """Scan a detector with clean images.

    Args:
        model: an instrumented detector in eval mode.
        images: clean images with at least one object in all.
        settings: of the scan.
        calibration: scores of clean detectors.
        image_format: channel order of the images, "BGR" or "RGB".
        match_classes: whether objects must be found in their own class.
        progress: called after the clean pass and after every trigger.
    """
    clean, triggered = _survey(model, images, settings, image_format, match_classes, progress)
    return _conclude(clean, triggered, settings, calibration, classification_modules(model))


def score_detector(
    model: nn.Module,
    images: Sequence[CleanImage],
    settings: ScanSettings,
    image_format: str,
    match_classes: bool = True,
) -> float:
    """The score of a detector alone, for calibration; arguments as :func:`inspect_detector`."""
    clean, triggered = _survey(model, images, settings, image_format, match_classes, None)
    clean_terms = image_terms(clean)
    return max(trigger_fall(clean_terms, image_terms(under)) for under in triggered.values())


def _survey(
    model: nn.Module,
    images: Sequence[CleanImage],
    settings: ScanSettings,
    image_format: str,
    match_classes: bool,
    progress: Progress | None,
) -> tuple[Observation, dict[str, Observation]]:
    """The detector on the images as they are, and under each trigger by name."""
    observations = []
    for trigger in (None, *settings.triggers):
        observations.append(
            observe(model, images, trigger, settings.observation, image_format, match_classes)
        )
        if progress:
            progress()
    clean, *triggered = observations
    names = (trigger.name for trigger in settings.triggers)
    return clean, dict(zip(names, triggered, strict=True))


def _conclude(
    clean: Observation,
    triggered: dict[str, Observation],
    settings: ScanSettings,
    calibration: Calibration,
    modules_of_classification: Sequence[str],
) -> Inspection:
    clean_terms = image_terms(clean)
    triggered_terms = {name: image_terms(observation) for name, observation in triggered.items()}
    num_images = len(clean.target_offsets) - 1
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
            "clean": clean.result.histogram.sum(0).tolist(),
            "triggered": triggered[worst].result.histogram.sum(0).tolist(),
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
