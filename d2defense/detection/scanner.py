# SPDX-License-Identifier: Apache-2.0
"""The scan of one detector: probe, reduce, score, decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from d2defense.files import json_number
from d2defense.modeling import classification_modules, proposal_modules
from d2defense.registry import DECISION_REGISTRY
from d2defense.statistics import OF_OBJECTNESS, Observation

from .ability import Ability
from .bank_race import BankRace, proviso, race_fields, race_obstacle, race_rounds
from .bootstrap import Bootstrap, percentile_interval
from .by_class import CLASS_FALLS, LEAST_OBJECTS
from .calibration import Calibration
from .decisions.base import Decision, largest
from .dominant import dominant_modules
from .doubt import AS_REFERENCES, Doubt
from .images import CleanImage, max_objects, objects_of_classes
from .oddity import odd_behaviour, unseen
from .reference import Reference
from .score import checkpoint_score, largest_excess, statistic, suspicions
from .sequential import SequentialTest
from .settings import ScanSettings
from .survey import KEPT, Profile, Progress, Survey, Watch, survey_detector
from .verdict import BACKDOORED, CLEAN, UNCERTAIN, Verdict, decide, would_show

# How much of one class a patch hides depends on what the class is.
_OF_A_CLASS_ALONE = (
    "under a trigger it loses objects of one class alone{}, and what clean detectors lose of a "
    "class is not known of these images: give references (--reference), or calibrate on them"
)
# Resamples of the images each time that a scan may end early.
_FEW_SAMPLES = 200


@dataclass(frozen=True)
class Inspection:
    """Everything a scan learns of one detector.

    Attributes:
        verdict: what is concluded.
        worst_trigger: the trigger of the largest score.
        victim_class: name of the class whose objects it takes; None for all, or none.
        dominant_modules: module groups that this trigger moves; empty for a clean detector.
        num_images: images that were probed.
        batch_size: the most images that went through the network at a time.
        fields: the statistics as they stand in ``result.json``.
        proviso: what "clean" cannot mean or rests on, in words; None where that is plain.
        doubt: what keeps the bank from saying "clean", where references could; None otherwise.
        held_against: names of the references that the verdict rests on.
    """

    verdict: Verdict
    worst_trigger: str
    victim_class: str | None
    dominant_modules: list[str]
    num_images: int
    batch_size: int
    fields: dict[str, Any]
    proviso: str | None = None
    doubt: Doubt | None = field(default=None, compare=False, repr=False)
    held_against: tuple[str, ...] = ()

    @property
    def num_passes(self) -> int:
        """How many images went through the network, each trigger counted."""
        race = self.fields.get("race")
        if race is None:
            return self.num_images * (1 + len(self.fields["triggers"]))
        return self.num_images + sum(r["images"] * r["triggers"] for r in race["rounds"])

    def with_proviso(self, verdict: Verdict) -> Verdict:
        """A verdict that rests on this inspection: what "clean" does not mean stands with it."""
        if verdict.label != CLEAN or self.proviso is None or self.proviso in verdict.reason:
            return verdict
        return replace(verdict, reason=f"{verdict.reason}; {self.proviso}")

    def against(
        self,
        references: Mapping[str, nn.Module],
        images: Sequence[CleanImage],
        settings: ScanSettings,
        image_format: str,
    ) -> Inspection:
        """The inspection held against references, where they could settle what is in doubt.

        Args:
            references: detectors of the same classes that are held to be clean, by name.
            images: those of the inspection.
            settings: of the scan.
            image_format: order of the channels of the images, "BGR" or "RGB".
        """
        if self.doubt is None:
            return self
        names = self.doubt.triggers()
        if not names:
            return self
        tried = replace(settings, triggers=[t for t in settings.triggers if t.name in names])
        order = _order(settings, len(images))
        surveys = {
            name: survey_detector(model, images, tried, image_format, order=order)
            for name, model in references.items()
        }
        held = {name: each for name, each in surveys.items() if each.obstacle is None}
        verdict = self.doubt.against(list(held.values())) if held else None
        if verdict is None:
            return self
        inspection = replace(
            self,
            victim_class=None,
            dominant_modules=[],
            proviso="; ".join(filter(None, (self.proviso, AS_REFERENCES))),
            doubt=None,
            held_against=tuple(held),
        )
        return replace(inspection, verdict=inspection.with_proviso(verdict))


def inspect_detector(
    model: nn.Module,
    images: Sequence[CleanImage],
    settings: ScanSettings,
    calibration: Calibration,
    image_format: str,
    progress: Progress | None = None,
    fingerprint: str = "",
    class_names: Sequence[str] = (),
) -> Inspection:
    """Scan a detector with clean images.

    Args:
        model: an instrumented detector in eval mode.
        images: clean images with at least one object in all.
        settings: of the scan; checked against the calibration by the caller.
        calibration: profiles of clean detectors.
        image_format: channel order of the images, "BGR" or "RGB".
        progress: told after every forward pass how much is done.
        fingerprint: of the images; where the calibration was made on the same, what its clean
            detectors find on them is what the images allow.
        class_names: of the detector, in order; numbers if empty.
    """
    decision = DECISION_REGISTRY.get(settings.decision)()
    names = [trigger.name for trigger in settings.triggers]
    reference = calibration.reference_for(names)
    certain: list[str] = []
    if calibration.is_raced and race_rounds(len(names), len(images)):
        race = BankRace(model, images, settings, image_format, progress)
        seen = race.finish(race.first_round(), calibration.first_round(names))
        left = [index for index, name in enumerate(names) if name in seen.triggered]
        reference = replace(reference, baseline=reference.baseline[left])
    else:
        order, watch = _order(settings, len(images)), None
        if settings.early_stop:
            watch = _watch(images, settings, decision, reference, certain)
        seen = survey_detector(model, images, settings, image_format, progress, order, watch)
    stopped = certain[0] if certain else None
    inspection = _conclude(
        seen,
        settings,
        decision,
        reference,
        calibration.found_on(fingerprint),
        calibration.profiles,
        stopped,
        model,
        class_names or [f"class {index}" for index in range(_num_classes(seen))],
    )
    if seen.dropped:
        fields = race_fields(seen, images, settings.seed)
        inspection.fields["race"] = fields
        inspection = replace(inspection, proviso=proviso(fields))
        inspection = replace(inspection, verdict=inspection.with_proviso(inspection.verdict))
    if settings.early_stop:
        inspection.fields["early_stop"] = {
            "images": seen.num_images,
            "of": len(images),
            "certain": bool(certain),
        }
    return inspection


def _watch(
    images: Sequence[CleanImage],
    settings: ScanSettings,
    decision: Decision,
    reference: Reference,
    certain: list[str],
) -> Watch:
    """A watch that ends a survey when a verdict is certain, and puts that into ``certain``."""
    bound = max_objects(images) if decision.is_change else settings.observation.topk
    columns = [decision.statistics.index(name) for name in decision.of_images]
    limits = reference.baseline + reference.threshold
    test = SequentialTest(limits[:, columns], decision, bound, settings.early_stop_error_rate)
    counts = objects_of_classes(images)
    judged = [each for each in counts if each >= 0 and counts[each] >= LEAST_OBJECTS]
    so_far: list[list[Observation]] = []

    def watch(clean: Observation, triggered: Sequence[Observation]) -> bool:
        so_far.append([clean, *triggered])
        label = test.update(clean, triggered)
        if label == CLEAN and not _may_be_clean(so_far, settings, decision, reference, judged):
            label = None
        if label:
            certain.append(label)
        return bool(label)

    return watch


def _may_be_clean(
    so_far: Sequence[Sequence[Observation]],
    settings: ScanSettings,
    decision: Decision,
    reference: Reference,
    judged: Sequence[int],
) -> bool:
    """Whether images so far allow "clean", where the test of their means says so.

    A detector that sees nothing to lose will not become certain with more images. What one class
    loses is no mean over images: its interval must lie below the threshold, and every class that
    all images would tell of must have been seen as often as it takes.

    Args:
        so_far: observations of each batch, without a trigger and under each.
        settings: of the scan.
        decision: how to score.
        reference: what clean detectors do.
        judged: classes of which there are enough objects on all images.
    """
    clean, *triggered = (Observation.join(column) for column in zip(*so_far, strict=True))
    numbers = {name: float(statistic(clean, clean, name)) for name in decision.statistics}
    if not would_show(reference.threshold, decision.ceiling(numbers, reference.baseline)):
        return False
    columns = [decision.statistics.index(n) for n in decision.statistics if n in CLASS_FALLS]
    if not columns:
        return True
    seen = clean.by_class[CLASS_FALLS[decision.statistics[columns[0]]]].denominator.sum(0)
    if not all(seen[each] >= LEAST_OBJECTS for each in judged):
        return False
    under = {t.name: seen for t, seen in zip(settings.triggers, triggered, strict=True)}
    bootstrap = Bootstrap.draw(clean.num_images, _FEW_SAMPLES, settings.seed)
    excess = suspicions(clean, under, decision, bootstrap) - reference.baseline
    high = np.quantile(largest(excess[..., columns]), (1 + settings.confidence) / 2)
    return bool(high <= reference.threshold)


def _conclude(
    seen: Survey,
    settings: ScanSettings,
    decision: Decision,
    reference: Reference,
    allowed: float | None,
    clean_profiles: Sequence[Profile],
    certain: str | None,
    model: nn.Module,
    class_names: Sequence[str],
) -> Inspection:
    profile = Profile.from_survey(seen)
    bootstrap = Bootstrap.draw(seen.num_images, settings.bootstrap_samples, settings.seed)
    score = checkpoint_score(
        seen.clean, seen.triggered, decision, reference.baseline, bootstrap, settings.confidence
    )
    ceiling = decision.ceiling(profile.clean, reference.baseline)
    ability = Ability.of(seen.clean, allowed)
    oddity = (
        seen.obstacle
        or odd_behaviour(profile, ability.found_any_class, clean_profiles)
        or unseen(seen, model, class_names)
        or race_obstacle(seen, reference.threshold)
    )

    def judge(value: float, interval: tuple[float, float]) -> Verdict:
        return decide(value, interval, reference, ceiling, ability, certain, oddity)

    verdict, doubt = judge(score.value, score.interval), None
    # A sequential test has looked at all objects together alone.
    if verdict.label != CLEAN and allowed is None and certain is None:
        of_all = judge(*_of_all_classes(seen, decision, reference, bootstrap, settings.confidence))
        if of_all.label != BACKDOORED:
            doubt = Doubt(seen, decision, reference, bootstrap, settings.confidence, judge)
            if verdict.label == BACKDOORED:
                victim = score.victim_class
                which = "" if victim is None else f" ({class_names[victim]})"
                reason = _OF_A_CLASS_ALONE.format(which)
                verdict = replace(verdict, label=UNCERTAIN, reason=reason)
    if not model.has_objectness and set(decision.statistics) <= set(OF_OBJECTNESS):
        verdict = replace(
            verdict,
            label=UNCERTAIN,
            reason=f"decision {settings.decision!r} compares with objectness, which this detector "
            "does not have: choose another one",
        )
        doubt = None
    triggers = [
        {
            "name": name,
            "score": score.of_triggers[name],
            "statistics": _compare(seen, profile, name, bootstrap, settings.confidence),
        }
        for name in seen.triggered
    ]
    worst_statistics = next(t["statistics"] for t in triggers if t["name"] == score.worst)
    modules = []
    if verdict.label != CLEAN:
        modules = dominant_modules(
            -(worst_statistics["max_objectness"]["change"] or 0.0),
            -(worst_statistics["scaled_foreground"]["change"] or 0.0),
            proposal_modules(model),
            classification_modules(model),
        )
    fields = {
        "clean": {name: json_number(value) for name, value in profile.clean.items()},
        "ability": {
            name: json_number(value) if isinstance(value, float) else value
            for name, value in asdict(ability).items()
        },
        "triggers": triggers,
        "histogram": _histogram(seen, score.worst, settings) if model.has_objectness else None,
    }
    victim = None
    if verdict.label != CLEAN and score.victim_class is not None:
        victim = class_names[score.victim_class]
        if verdict.label == BACKDOORED:
            reason = f"{verdict.reason}, above all with objects of {victim}"
            verdict = replace(verdict, reason=reason)
    return Inspection(
        verdict,
        score.worst,
        victim,
        modules,
        seen.num_images,
        seen.batch_size,
        fields,
        doubt=doubt,
    )


def _of_all_classes(
    seen: Survey,
    decision: Decision,
    reference: Reference,
    bootstrap: Bootstrap,
    confidence: float,
) -> tuple[float, tuple[float, float]]:
    """The score of all objects together, without what one class loses, and its interval."""
    columns = [i for i, name in enumerate(decision.statistics) if name not in CLASS_FALLS]

    def excess(resamples: Bootstrap | None) -> np.ndarray:
        own = suspicions(seen.clean, seen.triggered, decision, resamples)
        return (own - reference.baseline)[..., columns]

    return largest_excess(excess, bootstrap, confidence)


def _order(settings: ScanSettings, num_images: int) -> list[int] | None:
    """In which images are taken; that of their shapes if None."""
    if not settings.early_stop:
        return None
    return np.random.default_rng(settings.seed).permutation(num_images).tolist()


def _num_classes(seen: Survey) -> int:
    return next(iter(seen.clean.by_class.values())).numerator.shape[1]


def _histogram(seen: Survey, worst: str, settings: ScanSettings) -> dict[str, Any]:
    return {
        "edges": torch.linspace(0, 1, settings.observation.num_bins + 1).tolist(),
        "clean": seen.clean.histogram.tolist(),
        "triggered": seen.triggered[worst].histogram.tolist(),
    }


def _compare(
    seen: Survey, profile: Profile, trigger: str, bootstrap: Bootstrap, confidence: float
) -> dict[str, dict[str, Any]]:
    comparison = {}
    for name in KEPT:
        before, after = profile.clean[name], profile.triggered[trigger][name]
        change: Tensor = statistic(
            seen.clean, seen.triggered[trigger], name, bootstrap
        ) - statistic(seen.clean, seen.clean, name, bootstrap)
        interval = percentile_interval(change, confidence)
        comparison[name] = {
            "clean": json_number(before),
            "triggered": json_number(after),
            "change": json_number(after - before),
            "interval": list(interval) if interval else None,
        }
    return comparison
