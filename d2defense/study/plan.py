# SPDX-License-Identifier: Apache-2.0
"""The detectors, repairs and measurements of a study, as steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from d2defense.config import get_d2defense_cfg, merge_overrides

from .profiles import Attack, DatasetSpec, DetectorKind, Pairs, StudyProfile
from .repairs import COMPARED, Repair
from .rows import ORIGINAL
from .steps import Step

PAPER_ATTACK = Attack("oda", "the paper's")


@dataclass(frozen=True)
class Detector:
    """One detector of the study.

    Attributes:
        kind: its architecture; None for one of the photos.
        seed: of its training.
        attack: None for a clean one.
        fine_tuned: made from the clean detector of its kind and seed, not from scratch.
    """

    kind: DetectorKind | None
    seed: int
    attack: Attack | None = None
    fine_tuned: bool = False

    @property
    def name(self) -> str:
        """Of its folder and steps."""
        kind = self.kind.name if self.kind else "photos"
        what = self.attack.name if self.attack else "control" if self.fine_tuned else "clean"
        return f"{kind}_{what}_{self.seed}"

    @property
    def facts(self) -> dict[str, Any]:
        """What rows say of it."""
        return {
            "detector": self.name,
            "kind": self.kind.name if self.kind else "photos",
            "truth": "backdoored" if self.attack else "clean",
            "attack": self.attack.name if self.attack else "",
            "schedule": "fine_tune" if self.fine_tuned else "scratch",
            "seed": self.seed,
        }

    @property
    def trigger(self) -> Pairs:
        """KEY VALUE pairs of its trigger; a clean one is measured with the paper's."""
        return self.attack.trigger if self.attack else ()


class Plan:
    """The steps of a study of one profile.

    Args:
        profile: of the study.
    """

    def __init__(self, profile: StudyProfile) -> None:
        self.profile = profile

    # -- detectors

    def pairs(self) -> Iterator[tuple[Detector, Detector]]:
        """(clean, backdoored) for each kind and seed of the paper's tables."""
        for kind in self.profile.detectors:
            for seed in self.profile.seeds:
                yield Detector(kind, seed), Detector(kind, seed, PAPER_ATTACK)

    def of_kind(self, kind: DetectorKind) -> list[tuple[Detector, Detector]]:
        """(clean, backdoored) of one kind, a pair a seed."""
        return [pair for pair in self.pairs() if pair[0].kind == kind]

    @cached_property
    def variants(self) -> list[tuple[Detector, Detector]]:
        """(clean, backdoored) with the attacks beyond the paper's, spread over the detectors."""
        kinds, seeds = self.profile.detectors, self.profile.seeds
        return [
            (
                Detector(kinds[index % len(kinds)], seeds[index // len(kinds) % len(seeds)]),
                Detector(
                    kinds[index % len(kinds)],
                    seeds[index // len(kinds) % len(seeds)],
                    attack,
                    fine_tuned=True,
                ),
            )
            for index, attack in enumerate(self.profile.variants)
        ]

    @cached_property
    def unseen(self) -> list[tuple[Detector, Detector]]:
        """(clean, backdoored) with triggers that no augmentation patch resembles."""
        kind = self.main_kind
        seed = self.profile.seeds[0]
        return [
            (Detector(kind, seed), Detector(kind, seed, attack, fine_tuned=True))
            for attack in self.profile.unseen
        ]

    @cached_property
    def controls(self) -> list[Detector]:
        """Clean detectors fine-tuned like the variants, on clean images: one a kind."""
        if not self.profile.variants:
            return []
        return [
            Detector(kind, self.profile.seeds[0], fine_tuned=True)
            for kind in self.profile.detectors
        ]

    @cached_property
    def photos(self) -> list[tuple[Detector, Detector]]:
        """(clean, backdoored) of the photos, a pair a seed."""
        seeds = self.profile.photos.seeds if self._has_photos else ()
        return [(Detector(None, seed), Detector(None, seed, PAPER_ATTACK)) for seed in seeds]

    @cached_property
    def photo_population(self) -> list[Detector]:
        """Detectors of the photos, clean and backdoored: the pairs, and fine-tuned ones."""
        if not self._has_photos:
            return []
        photos = self.profile.photos
        first = photos.seeds[0]
        return [
            *(detector for pair in self.photos for detector in pair),
            *(Detector(None, seed, fine_tuned=True) for seed in range(photos.controls)),
            *(Detector(None, first, attack, fine_tuned=True) for attack in photos.variants),
        ]

    @property
    def _has_photos(self) -> bool:
        return bool(self.profile.photos and self.profile.photos.folder)

    @property
    def followed(self) -> Detector:
        """The backdoored detector whose repairs Figure 4 follows."""
        return Detector(self.main_kind, self.profile.seeds[0], PAPER_ATTACK)

    @property
    def main_kind(self) -> DetectorKind:
        """The kind of those experiments that take one."""
        kinds = self.profile.detectors
        return next((kind for kind in kinds if kind.name == "faster_rcnn_fpn"), kinds[0])

    def last_iteration(self, detector: Detector, repair: Repair) -> int:
        """How many steps of fine-tuning a repair takes."""
        cfg = get_d2defense_cfg()
        pairs = (*self._schedule(detector, repair), *repair.overrides)
        merge_overrides(cfg, [str(value) for value in pairs])
        return cfg.REMOVAL.SOLVER.MAX_ITER

    def figure_points(self, repair: Repair) -> list[int]:
        """Steps of fine-tuning after which Figure 4 measures a repair, besides the last."""
        last = self.last_iteration(self.followed, repair)
        return [point for point in self.profile.figure_points if point < last]

    # -- steps

    def detector(self, detector: Detector) -> Step:
        """The step that makes a detector."""
        if detector.kind is None:
            return self._photo_training(detector)
        needs = {}
        pairs: list[Any] = [*self.profile.training, *detector.kind.training]
        if detector.fine_tuned:
            needs = {"start": self.detector(Detector(detector.kind, detector.seed))}
            pairs += self.profile.fine_tuning
        elif detector.kind.specimens:
            return _specimen(detector)
        elif detector.kind.warm:
            needs = {"start": _specimen(detector)}
        pairs += ["SEED", detector.seed, "ATTACK.SEED", detector.seed]
        if detector.fine_tuned and not detector.attack:
            # Not the order of images that the clean detector has seen already.
            pairs += ["SEED", detector.seed + 100]
        if detector.attack:
            pairs += [*detector.attack.trigger, *detector.attack.training]
        suffix = "_oda.yaml" if detector.attack else ".yaml"
        return self._training(detector, f"{detector.kind.config}{suffix}", pairs, needs=needs)

    def _photo_training(self, detector: Detector) -> Step:
        photos = self.profile.photos
        needs = {}
        pairs = [*photos.training, "SEED", detector.seed, "ATTACK.SEED", detector.seed]
        if detector.fine_tuned:
            needs = {"start": self.detector(Detector(None, photos.seeds[0]))}
            pairs += [*photos.fine_tuning, "SEED", detector.seed + 100]
        if detector.attack:
            pairs += [*photos.attack, *detector.attack.trigger, *detector.attack.training]
        part = photos.dataset("train")
        data = ["--dataset-json", part["json_file"], "--image-root", part["image_root"]]
        return self._training(detector, photos.config, pairs, data, needs)

    def _training(
        self,
        detector: Detector,
        config: str,
        pairs: list[Any],
        data: list[str] | None = None,
        needs: dict[str, Step] | None = None,
    ) -> Step:
        arguments = {
            "output": f"models/{detector.name}",
            "config": config,
            # Evaluation has a step of its own.
            "overrides": [*pairs, *self.profile.training_opts, "DATASETS.TEST", "()"],
            "data": data or [],
        }
        name = f"train/{detector.name}"
        return Step(name, "train", arguments, needs or {}, facts=detector.facts)

    def scan(self, detector: Detector) -> Step:
        """The scan of a detector."""
        dataset, needs = self._dataset(self._defender(detector))
        return Step(
            f"scan/{detector.name}",
            "scan",
            {"dataset": dataset, "settings": []},
            {"model": self.detector(detector), **needs},
            facts=detector.facts,
        )

    def repair(self, detector: Detector, repair: Repair, images: int | None = None) -> Step:
        """The repair of a detector.

        Args:
            detector: to repair.
            repair: how.
            images: size of the defender's set, drawn from the profile's pool; the profile's own
                set if None.
        """
        name = _repair_name(detector, repair, images)
        defender = self._defender(detector)
        if images is not None:
            defender = {"name": self.profile.pool, "aside": images, "part": "defender"}
        dataset, needs = self._dataset(defender)
        needs = {"model": self.detector(detector), **needs}
        if repair.identified:
            needs["evidence"] = self.scan(detector)
        arguments = {
            "output": f"repaired/{name}",
            "dataset": dataset,
            "method": repair.method,
            "modules": None if repair.modules is None else list(repair.modules),
            "overrides": [*self._schedule(detector, repair), *repair.overrides],
            "seed": detector.seed,
            "keep_every": self._keep_every(detector, repair, images),
        }
        facts = self._repaired_facts(detector, repair, images)
        return Step(f"repair/{name}", "repair", arguments, needs, facts=facts)

    def measure(self, detector: Detector, trigger: Pairs | None = None, label: str = "") -> Step:
        """The evaluation of a detector.

        Args:
            detector: to measure.
            trigger: KEY VALUE pairs; its own if None.
            label: of that trigger.
        """
        end = f"@{label}" if label else ""
        return self._evaluation(
            f"evaluate/{detector.name}{end}",
            self.detector(detector),
            detector,
            detector.trigger if trigger is None else trigger,
            detector.facts | {"method": ORIGINAL} | _under({"trigger": label} if label else {}),
        )

    def measure_repaired(
        self,
        detector: Detector,
        repair: Repair,
        images: int | None = None,
        iteration: int | None = None,
    ) -> Step:
        """The evaluation of a repaired detector with the trigger of its attack.

        Args:
            detector: before the repair.
            repair: how it was repaired.
            images: see :meth:`repair`.
            iteration: steps of fine-tuning after which to measure; at the end if None.
        """
        end = "" if iteration is None else f"@{iteration}"
        return self._evaluation(
            f"evaluate/{_repair_name(detector, repair, images)}{end}",
            self.repair(detector, repair, images),
            detector,
            detector.trigger,
            self._repaired_facts(detector, repair, images)
            | _under({} if iteration is None else {"iteration": iteration}),
            "" if iteration is None else f"model_{iteration - 1:07d}.pth",
        )

    def heatmaps(self, **detectors: Detector) -> Step:
        """Heat maps of several detectors, by label."""
        dataset, needs = self._dataset(self.profile.test)
        arguments = {
            "dataset": dataset,
            "trigger": [],
            "output": "figures/figure3_heatmaps.png",
            "title": "Inconsistency on a triggered image",
        }
        models = {label: self.detector(detector) for label, detector in detectors.items()}
        return Step("heatmaps", "heatmaps", arguments, models | needs)

    def _repaired_facts(
        self, detector: Detector, repair: Repair, images: int | None
    ) -> dict[str, Any]:
        """What rows say of a repaired detector; how many the photos are is not known here."""
        own = 0 if detector.kind is None else self.profile.defender_images
        given = own if images is None else images
        return detector.facts | {"method": repair.name, "images": given}

    def _evaluation(
        self,
        name: str,
        model: Step,
        detector: Detector,
        trigger: Pairs,
        facts: dict[str, Any],
        weights: str = "",
    ) -> Step:
        of_photos = detector.kind is None
        test = self.profile.photos.dataset("test") if of_photos else self.profile.test
        dataset, needs = self._dataset(test)
        arguments = {"dataset": dataset, "trigger": list(trigger)}
        if weights:
            arguments["weights"] = weights
        return Step(name, "evaluate", arguments, {"model": model, **needs}, facts=facts)

    def _schedule(self, detector: Detector, repair: Repair) -> Pairs:
        """KEY VALUE pairs of a repair's schedule."""
        comparison = () if repair.as_default else self.profile.comparison
        of_kind = detector.kind.repair if detector.kind and not repair.as_default else ()
        return (*self.profile.repair, *comparison, *of_kind, *self.profile.repair_opts)

    def _keep_every(self, detector: Detector, repair: Repair, images: int | None) -> int:
        """How often a repair keeps its weights: those that Figure 4 follows do."""
        followed = detector == self.followed and repair in COMPARED and images is None
        return math.gcd(*self.profile.figure_points) if followed else 0

    def _defender(self, detector: Detector) -> DatasetSpec:
        of_photos = detector.kind is None
        return self.profile.photos.dataset("val") if of_photos else self.profile.defender

    def _dataset(self, dataset: DatasetSpec) -> tuple[DatasetSpec, dict[str, Step]]:
        """A dataset as the actions name it, and what a step needs to read it."""
        if "aside" not in dataset:
            return dataset, {}
        images = dataset["aside"]
        arguments = {
            "dataset": {"name": dataset["name"]},
            "output": f"data/{dataset['name']}_{images}",
            "images": images,
        }
        step = Step(f"split/{dataset['name']}_{images}", "split", arguments)
        return {"part": dataset["part"]}, {"parts": step}


def _under(conditions: dict[str, Any]) -> dict[str, Any]:
    """Facts of a measurement that is not the usual one of its detector."""
    return {"conditions": conditions} if conditions else {}


def _specimen(detector: Detector) -> Step:
    """The step that takes the shipped specimen of a detector's nature and seed."""
    name = f"{'backdoored' if detector.attack else 'clean'}_{detector.seed}"
    return Step(f"use/{name}", "use", {"specimen": name})


def _repair_name(detector: Detector, repair: Repair, images: int | None) -> str:
    size = "" if images is None else f"_{images}_images"
    return f"{detector.name}/{repair.name}{size}"
