# SPDX-License-Identifier: Apache-2.0
"""How a scan is done."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from d2defense.registry import DECISION_REGISTRY
from d2defense.statistics import ObservationSettings
from d2defense.triggers import Trigger

from .bank import default_bank, load_bank, select_triggers
from .classes import ClassMap, load_class_map
from .search.levels import OFF, SearchSettings
from .search.null import load_null

DEFAULT_DECISION = "deployed"


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
        decision: name in ``DECISION_REGISTRY``.
        early_stop: whether to end once the verdict is certain.
        early_stop_error_rate: probability of either wrong verdict when a scan ends early.
        race: whether a large bank is raced (:mod:`~d2defense.detection.bank_race`).
        search: for triggers that the bank does not hold.

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
    decision: str = DEFAULT_DECISION
    early_stop: bool = False
    early_stop_error_rate: float = 0.05
    race: bool = True
    search: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        for name, allowed in (
            ("max_images", self.max_images >= 0),
            ("seed", self.seed >= 0),
            ("confidence", 0 < self.confidence < 1),
            ("bootstrap_samples", self.bootstrap_samples >= 1),
            ("early_stop_error_rate", 0 < self.early_stop_error_rate < 1),
        ):
            if not allowed:
                raise ValueError(f"{name} {getattr(self, name)} is out of range")
        is_change = DECISION_REGISTRY.get(self.decision).is_change
        if self.early_stop and not is_change and not self.observation.topk:
            raise ValueError("a scan by tau over all proposals cannot end early: set topk")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> ScanSettings:
        """The settings that ``DEFENSE`` gives.

        Raises:
            ValueError: a bank or a null that cannot be read, a trigger that the bank does not have,
                or a value out of range.
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
            race=node.RACE,
            search=SearchSettings(
                node.SEARCH,
                node.SEARCH_ALWAYS,
                node.TWIN,
                node.TWIN_STEPS,
                load_null(Path(node.SEARCH_NULL)) if node.SEARCH_NULL else None,
            ),
        )

    def without_search(self) -> ScanSettings:
        """The same scan by the bank alone."""
        return replace(self, search=SearchSettings(OFF))

    def as_dict(self) -> dict[str, Any]:
        """The settings as one flat dictionary for result files; triggers by name."""
        flat = asdict(self)
        search = self.search
        flat["search"], flat["search_always"] = search.level, search.always
        flat["twin"], flat["twin_steps"] = search.twin, search.twin_steps
        flat["search_null"] = search.own_null and search.own_null.name
        flat["triggers"] = [trigger.name for trigger in self.triggers]
        flat["class_map"] = self.class_map and self.class_map.source
        return flat | flat.pop("observation")
