# SPDX-License-Identifier: Apache-2.0
"""What a search finds in clean detectors: a trigger hurts the one it was made for the most."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from d2defense.files import write_json
from d2defense.registry import EFFECT_REGISTRY

from ..reference import Reference
from ..verdict import MUST_SHOW
from .arms import Arm

SCHEMA_VERSION = 2
#: Of the search; a change that moves what it finds raises it, and old files are refused.
PROCEDURE_VERSION = 7
#: What a found trigger is held against: other detectors, the suspect after fine-tuning, nothing.
REFERENCES, TWIN, ALONE = MODES = ("references", "twin", "alone")
# Fewer do not say how far clean detectors differ.
_LEAST_SEARCHES = 3
_FALSE_ALARM_RATE = 0.01
# Clean detectors of one dataset differ less than others would: least standard deviation of an
# excess, and of scores.
_LEAST_DEVIATION, _LEAST_SCORE_DEVIATION = 0.05, 1.0
_OF_ONE_CLASS, _ON = " of one class", " on "
# Success up to which ghosts anywhere are rare, as they are in the detectors of the null: on images
# full of things that nobody labelled, detectors show more.
_RARE = 0.1
# Sorts of arms, see _sort.
_SORTS = _ALL, _ONE_CLASS, _ANYWHERE = ("all", "one class", "anywhere")
_HOW_TO = "make one with python tools/calibrate_search.py"


class SearchNullError(ValueError):
    """A null cannot be used; the message names it, the reason, and how to make another."""


def arm_key(arm: Arm, of_one_class: bool = False) -> str:
    """What arms have in common whose excesses are compared: all but which classes they are on.

    Args:
        arm: one to compare.
        of_one_class: as if it were on the objects of one class.
    """
    victims = _OF_ONE_CLASS if of_one_class or arm.goal.victim_class is not None else ""
    return f"{arm.goal.effect.name}{victims}, {arm.start.name}{_ON}{arm.goal.placement}"


class Shown(NamedTuple):
    """The largest that one search of a clean detector shows by arms of one key."""

    success: float
    """Attack success rate on the detector itself, 0..1."""
    excess: float
    """Success beyond the mean of the references; the success itself without any."""

    def counted(self, mode: str) -> float:
        """What counts in a mode: the excess, or alone the success."""
        return self.success if mode == ALONE else self.excess


@dataclass(frozen=True)
class CleanSearch:
    """One clean detector, searched as if it were a suspect.

    Attributes:
        detector: its name.
        mode: what it was held against, one of :data:`MODES`.
        level: how thoroughly it was searched.
        num_images: images that it was measured on.
        seed: of the search.
        shown: by :func:`arm_key`; arms that were given up before they were measured are missing.
    """

    detector: str
    mode: str
    level: str
    num_images: int
    seed: int
    shown: Mapping[str, Shown]

    def as_dict(self) -> dict[str, Any]:
        """The search for a JSON file."""
        shown = {key: each._asdict() for key, each in self.shown.items()}
        return {**vars(self), "shown": shown}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CleanSearch:
        """The search that :meth:`as_dict` made a dictionary of.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is none.
        """
        if content["mode"] not in MODES:
            raise ValueError(f"mode {content['mode']!r} is none of {', '.join(MODES)}")
        shown = {
            str(key): Shown(float(each["success"]), float(each["excess"]))
            for key, each in content["shown"].items()
        }
        return cls(
            str(content["detector"]),
            content["mode"],
            str(content["level"]),
            int(content["num_images"]),
            int(content["seed"]),
            shown,
        )


@dataclass(frozen=True)
class ModeNull:
    """What clean detectors show when they are searched in one mode.

    Attributes:
        mode: one of :data:`MODES`.
        searches: the largest number that counts of each search, by :func:`arm_key`.
    """

    mode: str
    searches: tuple[Mapping[str, float], ...]

    def baseline(self, key: str, usual: float = 0.0) -> float:
        """What clean detectors show by an arm that does most to them, on average.

        Their mean by the same arm, or by those of the same effect where none of them got so far;
        and, since the arm that does most is looked at, what that lies above its mean.

        Args:
            key: of the arm.
            usual: success that is nothing unusual on the images at hand, 0..1.
        """
        return self._mean(key) + self._heights[_sort(key, usual)][0]

    def deviation(self, key: str, usual: float = 0.0) -> float:
        """How far clean detectors differ in that: a standard deviation, 0.05 at least.

        That of arms of its sort (:func:`_sort`); arguments as :meth:`baseline`.
        """
        return self._heights[_sort(key, usual)][1]

    def standardise(self, key: str, value: float, usual: float = 0.0) -> float:
        """How far a value lies above those of clean detectors, in deviations."""
        return (value - self.baseline(key, usual)) / self.deviation(key, usual)

    def least_found(self, key: str) -> float:
        """The least excess by an arm of a key that stands out.

        Above 1 no backdoor does, however well it works: clean detectors differ too much.
        """
        return self.baseline(key) + self.reference.threshold * self.deviation(key)

    def blind_to(self, arms: Iterable[tuple[str, float]]) -> tuple[str, ...]:
        """The effects and placements of which it cannot be said that there are none.

        By none of their arms a backdoor that nearly always succeeds would stand out: clean
        detectors differ too much, or the references react, too.

        Args:
            arms: the key of each that was measured, and its success on the references, 0..1.
        """
        kinds: dict[str, bool] = {}
        for key, on_references in arms:
            # To one class of several references react by chance.
            left = 1.0 if _OF_ONE_CLASS in key else 1 - on_references
            would_show = self.least_found(key) <= min(MUST_SHOW, left)
            kind = kind_of(key)
            kinds[kind] = kinds.get(kind, False) or would_show
        return tuple(sorted(kind for kind, would_show in kinds.items() if not would_show))

    def score(self, values: Mapping[str, float]) -> float:
        """The largest of the standardised values; 0 without any."""
        return max((self.standardise(key, value) for key, value in values.items()), default=0.0)

    @cached_property
    def knows_classes(self) -> bool:
        """Whether it says what clean detectors show by one class; one without any arm forbids none.

        The largest of several classes is large by chance.
        """
        keys = {key for each in self.searches for key in each}
        return not keys or any(_OF_ONE_CLASS in key for key in keys)

    @cached_property
    def reference(self) -> Reference:
        """What these detectors score, each against the others; gives threshold and p-value."""
        scores = [
            max(
                (
                    (highest - self._heights[sort][0]) / self._heights[sort][1]
                    for sort, highest in each.items()
                ),
                default=0.0,
            )
            for each in self._highest
        ]
        return Reference(
            np.zeros((1, 1)), np.array(scores), _FALSE_ALARM_RATE, _LEAST_SCORE_DEVIATION
        )

    @cached_property
    def _highest(self) -> list[dict[str, float]]:
        """Of each search the largest beyond the others, by the sort of arm."""
        found = []
        for index, each in enumerate(self.searches):
            others = replace(self, searches=self.searches[:index] + self.searches[index + 1 :])
            highest: dict[str, float] = {}
            for key, value in each.items():
                sort, margin = _sort(key), value - others._mean(key)
                highest[sort] = max(highest.get(sort, margin), margin)
            found.append(highest)
        return found

    @cached_property
    def _heights(self) -> dict[str, tuple[float, float]]:
        """Mean and standard deviation of that."""
        heights = {}
        for sort in _SORTS:
            values = [each[sort] for each in self._highest if sort in each]
            spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            middle = float(np.mean(values)) if values else 0.0
            heights[sort] = (middle, max(_LEAST_DEVIATION, spread))
        return heights

    def _mean(self, key: str) -> float:
        values = [each[key] for each in self.searches if key in each]
        effect = _effect(key)
        values = values or [
            value for each in self.searches for k, value in each.items() if _effect(k) == effect
        ]
        return float(np.mean(values)) if values else 0.0


def kind_of(key: str) -> str:
    """Of an arm's key, the effect, on all or on one class, and the placement."""
    return f"{_effect(key)}{_ON}{key.rpartition(_ON)[2]}"


def is_anywhere(key: str) -> bool:
    """Whether an arm's key is of something that appears where nothing is and nothing was put."""
    effect = _effect(key)
    return effect in EFFECT_REGISTRY and EFFECT_REGISTRY.get(effect).anywhere


def _sort(key: str, usual: float = 0.0) -> str:
    """Of an arm's key, what chance it leaves to clean detectors.

    Most to one class, the largest of several; least to what must appear where nothing is and
    nothing was put, which they hardly show, unless it is usual on the images at hand. The others
    lie between.
    """
    if _OF_ONE_CLASS in key:
        return _ONE_CLASS
    return _ANYWHERE if is_anywhere(key) and usual <= _RARE else _ALL


def _effect(key: str) -> str:
    """Of an arm's key, the effect, on all or on one class."""
    return key.partition(",")[0]


@dataclass(frozen=True)
class SearchNull:
    """What searches of clean detectors show.

    Attributes:
        name: which detectors, in words.
        dataset: name of the images on which they were searched.
        fingerprint: SHA-256 of these images.
        searches: one each.

    Raises:
        SearchNullError: fewer than 3 searches.
    """

    name: str
    dataset: str
    fingerprint: str
    searches: tuple[CleanSearch, ...]

    def __post_init__(self) -> None:
        if len(self.searches) < _LEAST_SEARCHES:
            raise SearchNullError(
                f"{self.name}: a null needs at least {_LEAST_SEARCHES} searches of clean detectors"
            )

    def of(self, mode: str, level: str = "") -> ModeNull:
        """What counts in a mode.

        Of the searches those in the same mode and as thorough, where there are enough; else those
        in the same mode; else those that were held against something, if this one is; else all.

        Args:
            mode: one of :data:`MODES`.
            level: how thorough the search is.
        """
        same = [each for each in self.searches if each.mode == mode]
        alike = [each for each in same if each.level == level]
        held = [each for each in self.searches if ALONE not in (mode, each.mode)]
        chosen = next(
            each for each in (alike, same, held, self.searches) if len(each) >= _LEAST_SEARCHES
        )
        return ModeNull(
            mode,
            tuple(
                {key: shown.counted(mode) for key, shown in each.shown.items()} for each in chosen
            ),
        )

    def knows(self, dataset: str, fingerprint: str) -> bool:
        """Whether clean detectors were searched on images like these.

        On these very images, or on others of the same registered dataset; a file of annotations may
        have the name of another one.

        Args:
            dataset: name of the images' dataset, or of their file.
            fingerprint: of the images.
        """
        is_registered = not Path(dataset).suffix
        return fingerprint == self.fingerprint or (is_registered and dataset == self.dataset)

    def describe(self, fingerprint: str) -> str:
        """What thresholds rest on, in one sentence, for a search of images of a fingerprint."""
        detectors = {each.detector for each in self.searches}
        line = (
            f"{len(self.searches)} searches of {len(detectors)} clean detectors ({self.name}) on "
            f"{self.dataset}"
        )
        return line if fingerprint == self.fingerprint else f"{line}, not on these images"

    def save(self, path: Path) -> None:
        """Write it as JSON, with the thresholds that follow."""
        modes = sorted({each.mode for each in self.searches})
        content = {
            "schema_version": SCHEMA_VERSION,
            "procedure_version": PROCEDURE_VERSION,
            "name": self.name,
            "dataset": {"name": self.dataset, "fingerprint": self.fingerprint},
            "thresholds": {mode: self.of(mode).reference.threshold for mode in modes},
            "searches": [each.as_dict() for each in self.searches],
        }
        write_json(path, content)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> SearchNull:
        """The null that :meth:`save` wrote.

        Raises:
            SearchNullError: it is none, or one of another version.
        """
        try:
            for key, current in (
                ("schema_version", SCHEMA_VERSION),
                ("procedure_version", PROCEDURE_VERSION),
            ):
                if content.get(key) != current:
                    raise SearchNullError(f"{key} is not {current}: {_HOW_TO}")
            return cls(
                str(content["name"]),
                str(content["dataset"]["name"]),
                str(content["dataset"]["fingerprint"]),
                tuple(map(CleanSearch.from_dict, content["searches"])),
            )
        except SearchNullError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SearchNullError(f"not a null of the search ({error}): {_HOW_TO}") from None


def load_null(path: Path) -> SearchNull:
    """The null in a file.

    Raises:
        SearchNullError: it cannot be read, or is none that this version can use.
    """
    try:
        return SearchNull.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        raise SearchNullError(f"{path}: {error}") from None


@cache
def shipped_null() -> SearchNull:
    """The one that comes with the package; ``tools/calibrate_search.py`` makes it."""
    with resources.as_file(resources.files("d2defense") / "assets" / "search.json") as path:
        return load_null(path)
