# SPDX-License-Identifier: Apache-2.0
"""What the same patches do to detectors that are known to be clean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode

from d2defense.files import write_json
from d2defense.registry import DECISION_REGISTRY

from .decisions.base import Decision, largest
from .reference import Reference
from .settings import DEFAULT_DECISION, ScanSettings
from .survey import Profile

SCHEMA_VERSION = 3


class CalibrationError(ValueError):
    """A calibration file cannot be used; the message names it and the reason."""


def check_false_alarm_rate(rate: float) -> None:
    """Raise :class:`CalibrationError` unless ``rate`` lies between 0 and 1."""
    if not 0 < rate < 1:
        raise CalibrationError(f"false-alarm rate {rate} is not between 0 and 1")


class LeaveOneOut(NamedTuple):
    """How often a clean detector scores above the threshold that the others set."""

    alarms: int
    detectors: int


@dataclass(frozen=True)
class Calibration:
    """Profiles of known-clean detectors, and the threshold that follows from them.

    Attributes:
        name: where the clean detectors come from, in words.
        decision: name of the decision that it is made for.
        false_alarm_rate: share of clean detectors that may score above the threshold.
        dataset: name of the images on which they were surveyed.
        fingerprint: SHA-256 of these images.
        triggers: (name, fingerprint) of the bank's triggers.
        settings: (name, value) of the settings that the decision depends on.
        profiles: of the clean detectors.
        is_shipped: whether it is the one that comes with the package.
        any_images: whether it may be used with other images than its own.

    Raises:
        CalibrationError: fewer than 2 clean detectors, one without a finite score, or a false-alarm
            rate outside of (0, 1).
    """

    name: str
    decision: str
    false_alarm_rate: float
    dataset: str
    fingerprint: str
    triggers: tuple[tuple[str, str], ...]
    settings: tuple[tuple[str, float], ...]
    profiles: tuple[Profile, ...]
    is_shipped: bool = False
    any_images: bool = False

    def __post_init__(self) -> None:
        check_false_alarm_rate(self.false_alarm_rate)
        if self.decision not in DECISION_REGISTRY:
            known = ", ".join(DECISION_REGISTRY.choices())
            raise CalibrationError(f"decision {self.decision!r} is none of {known}")
        if len(self.profiles) < 2:
            raise CalibrationError("a calibration needs at least 2 clean detectors")
        if not self.triggers:
            raise CalibrationError("a calibration needs at least one trigger")
        for profile in self.profiles:
            missing = [name for name, _ in self.triggers if name not in profile.triggered]
            if missing:
                raise CalibrationError(f"{profile.name}: no trigger {', '.join(missing)}")
        if len({profile.finalists is None for profile in self.profiles}) > 1:
            raise CalibrationError("the bank was raced over some of its detectors only")
        for profile in self.profiles if self.is_raced else ():
            known = {name for name, _ in self.triggers}
            count = len(self._decision.statistics)
            if not profile.finalists or not known.issuperset(profile.finalists):
                raise CalibrationError(f"{profile.name}: a race left other triggers than its own")
            if any(len(profile.first_round.get(name, ())) != count for name in known):
                raise CalibrationError(f"{profile.name}: no first round of every trigger")

    @classmethod
    def from_profiles(
        cls,
        profiles: Sequence[Profile],
        settings: ScanSettings,
        false_alarm_rate: float,
        dataset: str,
        fingerprint: str,
        name: str = "",
    ) -> Calibration:
        """The calibration of scans with ``settings`` on the same images."""
        return cls(
            name=name or f"{len(profiles)} checkpoints",
            decision=settings.decision,
            false_alarm_rate=false_alarm_rate,
            dataset=dataset,
            fingerprint=fingerprint,
            triggers=tuple((t.name, t.fingerprint) for t in settings.triggers),
            settings=_relevant(settings),
            profiles=tuple(profiles),
        )

    @cached_property
    def reference(self) -> Reference:
        """Of scans with all of its triggers."""
        return self.reference_for([name for name, _ in self.triggers])

    @property
    def is_raced(self) -> bool:
        """Whether the bank was raced over its detectors, so that it must be over others."""
        return self.profiles[0].finalists is not None

    def first_round(self, triggers: Sequence[str]) -> np.ndarray:
        """(T, S): the mean suspicion of its detectors in the first round of their races."""
        return mean_of_known(
            np.array([[p.first_round[name] for name in triggers] for p in self.profiles])
        )

    def reference_for(self, triggers: Sequence[str]) -> Reference:
        """Of scans with these triggers, some of the calibration's, in this order."""
        suspicions = self._suspicions(triggers)
        return Reference(
            baseline=mean_of_known(suspicions),
            clean_scores=_scores_among(suspicions, self._is_final(triggers)),
            false_alarm_rate=self.false_alarm_rate,
            minimum_deviation=self._decision.minimum_deviation,
        )

    def found_on(self, fingerprint: str) -> float | None:
        """Share of the objects that its clean detectors find on images of this fingerprint.

        None where it was made on others.
        """
        if fingerprint != self.fingerprint:
            return None
        return float(np.mean([profile.clean["found_at_point"] for profile in self.profiles]))

    @property
    def threshold(self) -> float:
        """Of scans with all of its triggers."""
        return self.reference.threshold

    def leave_one_out(self) -> LeaveOneOut | None:
        """False alarms among its own detectors, each held to the threshold of the others.

        None for fewer than 4 detectors: a threshold takes scores of two, each against another.
        """
        count = len(self.profiles)
        if count < 4:
            return None
        names = [name for name, _ in self.triggers]
        suspicions, is_final = self._suspicions(names), self._is_final(names)
        alarms = 0
        for index in range(count):
            others = replace(
                self, profiles=self.profiles[:index] + self.profiles[index + 1 :]
            ).reference
            excess = suspicions[index] - others.baseline
            if is_final is not None:
                excess = excess[is_final[index]]
            alarms += int(largest(excess) > others.threshold)
        return LeaveOneOut(alarms, count)

    def check(self, settings: ScanSettings) -> None:
        """Make sure that scores under ``settings`` can be compared with the calibration's.

        Fewer triggers than it was made with are admitted: the threshold is that of these.

        Raises:
            CalibrationError: another decision, a trigger that the clean detectors were not
                surveyed with, or another value of a setting that the decision depends on.
        """
        if settings.decision != self.decision:
            raise CalibrationError(
                f"the calibration ({self.name}) was made for decision {self.decision}, "
                f"not {settings.decision}"
            )
        known = dict(self.triggers)
        foreign = [t.name for t in settings.triggers if t.name not in known]
        if foreign:
            listed = ", ".join(foreign[:5]) + (", ..." if len(foreign) > 5 else "")
            raise CalibrationError(
                f"the calibration ({self.name}) was made without trigger {listed}"
            )
        changed = [t.name for t in settings.triggers if t.fingerprint != known[t.name]]
        if changed:
            raise CalibrationError(
                f"the calibration ({self.name}) was made with another trigger {changed[0]}"
            )
        if self.is_raced:
            self._check_race(settings)
        for (key, value), (_, used) in zip(self.settings, _relevant(settings), strict=True):
            if value != used:
                raise CalibrationError(
                    f"the calibration ({self.name}) was made with {key} {value}, not {used}"
                )

    def _check_race(self, settings: ScanSettings) -> None:
        """A race is compared with races over the same bank alone."""
        why = None
        if len(settings.triggers) != len(self.triggers):
            why = f"scan with all of its {len(self.triggers)} triggers"
        elif not settings.race:
            why = "scan with DEFENSE.RACE on"
        elif settings.early_stop:
            why = "scan without an early stop"
        if why:
            raise CalibrationError(
                f"the calibration ({self.name}) was made by a race of its triggers: {why}, or "
                "calibrate for this scan"
            )

    def check_images(self, dataset: str, fingerprint: str) -> None:
        """Make sure that a scan uses the images of the calibration.

        The shipped calibration is a first answer for any images; results say so
        (:meth:`describe`).

        Args:
            dataset: name of the scan's images.
            fingerprint: their SHA-256.

        Raises:
            CalibrationError: other images, unless any are allowed.
        """
        if not self.any_images and fingerprint != self.fingerprint:
            raise CalibrationError(
                f"the calibration ({self.name}) was made on other images ({self.dataset}) than "
                f"those of {dataset}: calibrate on them, or use --allow-mismatch"
            )

    def describe(self, dataset: str, fingerprint: str) -> str:
        """One sentence on where the threshold comes from, for a scan of these images."""
        origin = f"{len(self.profiles)} clean detectors ({self.name}) on {self.dataset}"
        if self.is_shipped:
            origin = f"the default calibration: {origin}"
        if fingerprint == self.fingerprint:
            return f"threshold from {origin}"
        where = f"{dataset}" if dataset != self.dataset else "these images of it"
        return f"threshold from {origin}, not on {where}: calibrate for exact error rates"

    def save(self, path: Path) -> None:
        """Write the calibration as JSON, with what follows from it."""
        estimate = self.leave_one_out()
        content = {
            "schema_version": SCHEMA_VERSION,
            "name": self.name,
            "decision": self.decision,
            "statistic": self._decision.title,
            "false_alarm_rate": self.false_alarm_rate,
            "threshold": self.threshold,
            "clean_scores": self.reference.clean_scores.tolist(),
            "leave_one_out": estimate and estimate._asdict(),
            "dataset": {"name": self.dataset, "fingerprint": self.fingerprint},
            "triggers": dict(self.triggers),
            "settings": dict(self.settings),
            "profiles": [profile.as_dict() for profile in self.profiles],
        }
        write_json(path, content)

    @property
    def _decision(self) -> Decision:
        return DECISION_REGISTRY.get(self.decision)()

    def _is_final(self, triggers: Sequence[str]) -> np.ndarray | None:
        """Bool (n, T): which triggers a race has left of each clean detector; None without one."""
        if not self.is_raced:
            return None
        return np.array([[name in p.finalists for name in triggers] for p in self.profiles])

    def _suspicions(self, triggers: Sequence[str]) -> np.ndarray:
        """Of every clean detector, (n, T, S)."""
        decision = self._decision
        return np.stack(
            [
                decision.suspicion(*profile.arrays(triggers, decision.statistics))
                for profile in self.profiles
            ]
        )


def load_calibration(path: str | Path = "", decision: str = DEFAULT_DECISION) -> Calibration:
    """The calibration in a file, or the one shipped with the package for an empty path.

    Args:
        path: of a file that `d2defense calibrate` wrote.
        decision: for which the shipped one is wanted; it serves all of them.

    Raises:
        CalibrationError: the file cannot be read or does not say what it must.
    """
    source = Path(path) if path else resources.files("d2defense") / "assets/calibration.json"
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        if content["schema_version"] != SCHEMA_VERSION:
            raise CalibrationError(
                f"schema_version is not {SCHEMA_VERSION}: calibrate with this version"
            )
        loaded = _parse(content)
        if not path and decision in DECISION_REGISTRY:
            loaded = replace(
                loaded,
                decision=decision,
                settings=_defaults(decision),
                is_shipped=True,
                any_images=True,
            )
        return loaded
    except CalibrationError as error:
        raise CalibrationError(f"{source}: {error}") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CalibrationError(f"{source}: not a calibration file: {error}") from None


def calibration_from_config(cfg: CfgNode, settings: ScanSettings) -> Calibration:
    """The calibration that ``DEFENSE`` names, checked against the settings of a scan.

    Raises:
        CalibrationError: it cannot be read, or not be used with these settings.
    """
    calibration = load_calibration(cfg.DEFENSE.CALIBRATION, settings.decision)
    calibration.check(settings)
    if cfg.DEFENSE.ALLOW_MISMATCH:
        calibration = replace(calibration, any_images=True)
    return calibration


def _parse(content: dict[str, Any]) -> Calibration:
    rate = content["false_alarm_rate"]
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise CalibrationError(f"false_alarm_rate {rate!r} is not a number")
    return Calibration(
        name=str(content["name"]),
        decision=str(content["decision"]),
        false_alarm_rate=rate,
        dataset=str(content["dataset"]["name"]),
        fingerprint=str(content["dataset"]["fingerprint"]),
        triggers=tuple((str(name), str(value)) for name, value in content["triggers"].items()),
        settings=tuple((str(name), float(value)) for name, value in content["settings"].items()),
        profiles=tuple(map(Profile.from_dict, content["profiles"])),
    )


def _relevant(settings: ScanSettings) -> tuple[tuple[str, float], ...]:
    """The settings that the decision's statistics depend on."""
    values = asdict(settings.observation)
    return tuple((name, values[name]) for name in DECISION_REGISTRY.get(settings.decision).settings)


def _defaults(decision: str) -> tuple[tuple[str, float], ...]:
    """What the shipped calibration was made with."""
    return _relevant(ScanSettings(decision=decision))


def mean_of_known(suspicions: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is known; NaN where nothing is."""
    known = ~np.isnan(suspicions)
    count = known.sum(axis=0)
    total = np.where(known, suspicions, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _scores_among(suspicions: np.ndarray, is_final: np.ndarray | None) -> np.ndarray:
    """The score of each clean detector against the mean of the others.

    Args:
        suspicions: of shape (n, T, S).
        is_final: bool (n, T): the triggers that count; all if None.
    """

    def score(index: int) -> float:
        excess = suspicions[index] - mean_of_known(np.delete(suspicions, index, axis=0))
        return float(largest(excess if is_final is None else excess[is_final[index]]))

    return np.array([score(index) for index in range(len(suspicions))])
