# SPDX-License-Identifier: Apache-2.0
"""The detectors of a manifest one by one, in an order of which every beginning is balanced."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import product
from typing import Any

from .manifest import CLEAN, SPURIOUS, Manifest, ManifestError, ManifestGroup

# Of a spurious detector's training images, how many bear the trigger where none are poisoned.
_SPURIOUS_RATE = 0.1
#: Every third detector of the order is sequestered: nothing may be tuned on it.
SEQUESTERED_EVERY = 3


@dataclass(frozen=True)
class ZooEntry:
    """One detector of a zoo, before it is trained.

    Attributes:
        name: unique in the zoo; safe as a name of a file.
        truth: "clean", "spurious" or "backdoored".
        detector: its kind.
        attack: name of the attack; "" if it is clean.
        schedule: how it is trained.
        seed: its number among those that are equal otherwise.
        overrides: of the configuration.
        drawn: those of them that it drew among several values.
        start: entry of the clean detector that its training begins with, if it is one of the zoo.
        is_sequestered: whether nothing may be tuned on it.
    """

    name: str
    truth: str
    detector: str
    attack: str
    schedule: str
    seed: int
    overrides: Mapping[str, Any]
    drawn: Mapping[str, Any]
    start: ZooEntry | None = None
    is_sequestered: bool = False

    @property
    def training_seed(self) -> int:
        """``SEED`` and ``ATTACK.SEED``: no two detectors have the same first weights and images."""
        return _draw(self.name, "seed", 2**31)


def expand(manifest: Manifest) -> list[ZooEntry]:
    """All detectors of a manifest, in the order in which they are published.

    Whatever share of the zoo is there, truths, detectors, attacks and schedules have about the
    same share of it. Every third is sequestered.

    Raises:
        ManifestError: two detectors of one name, or one that begins with a clean detector that the
            manifest does not have.
    """
    entries = [entry for group in manifest.groups for entry in _of_group(manifest, group)]
    counts = Counter(entry.name for entry in entries)
    for name, count in counts.items():
        if count > 1:
            raise ManifestError(f"manifest {manifest.name}: {count} detectors are called {name}")
    entries = balanced(entries)
    clean = {
        kind: [entry for entry in entries if entry.truth == CLEAN and entry.detector == kind]
        for kind in manifest.detectors
    }
    linked: dict[str, ZooEntry] = {}
    for number, entry in enumerate(entries):
        start = None
        if _begins_with_clean(manifest, entry):
            # The first two: they are there early, and two differ enough.
            choices = clean[entry.detector][:2]
            if not choices:
                raise ManifestError(
                    f"manifest {manifest.name}: {entry.name} begins with a clean detector of its"
                    " kind, and there is none"
                )
            start = choices[_draw(entry.name, "start", len(choices))]
        is_sequestered = number % SEQUESTERED_EVERY == SEQUESTERED_EVERY - 1
        linked[entry.name] = replace(entry, is_sequestered=is_sequestered, start=start)
    return [
        replace(entry, start=entry.start and linked[entry.start.name]) for entry in linked.values()
    ]


def matching(
    entries: Sequence[ZooEntry], pattern: str = "", limit: int | None = None
) -> list[ZooEntry]:
    """The first ``limit`` of the entries whose name matches a shell pattern; all if it is empty."""
    chosen = [entry for entry in entries if not pattern or fnmatchcase(entry.name, pattern)]
    return chosen[:limit]


def balanced(entries: Sequence[ZooEntry]) -> list[ZooEntry]:
    """The entries so that each property has about its share in every beginning.

    The next is always one whose properties are furthest behind their share; those with equal
    properties come by their name's hash, so that a variant does not follow its neighbour.
    """

    def properties(entry: ZooEntry) -> tuple[tuple[str, str], ...]:
        return (
            ("truth", entry.truth),
            ("detector", entry.detector),
            ("attack", f"{entry.truth} {entry.attack}"),
            ("schedule", f"{entry.truth} {entry.schedule}"),
            ("pair", f"{entry.truth} {entry.detector} {entry.schedule}"),
        )

    waiting = sorted(entries, key=lambda entry: _draw(entry.name, "order", 2**31))
    total = Counter(each for entry in entries for each in properties(entry))
    taken: Counter[tuple[str, str]] = Counter()
    ordered = []
    while waiting:

        def behind(entry: ZooEntry) -> float:
            return sum((taken[each] + 0.5) / total[each] for each in properties(entry))

        chosen = min(waiting, key=behind)
        waiting.remove(chosen)
        ordered.append(chosen)
        taken.update(properties(chosen))
    return ordered


def _of_group(manifest: Manifest, group: ManifestGroup) -> list[ZooEntry]:
    entries = []
    for detector, attack, schedule, seed in product(
        group.detectors, group.attacks or ("",), group.schedules, group.seeds
    ):
        known = manifest.attacks.get(attack, {})
        what = {CLEAN: CLEAN, SPURIOUS: f"{SPURIOUS}_{attack}"}.get(group.truth, attack)
        name = "-".join((what, detector, schedule, str(seed)))
        vary = {**known.get("vary", {}), **group.vary}
        drawn = {key: values[_draw(name, key, len(values))] for key, values in vary.items()}
        overrides = {
            **manifest.schedules[schedule].get("overrides", {}),
            **known.get("overrides", {}),
            **group.overrides,
            **drawn,
        }
        if group.truth == SPURIOUS:
            overrides = {
                "ATTACK.SPURIOUS_RATE": _SPURIOUS_RATE,
                **overrides,
                "ATTACK.POISONING_RATE": 0.0,
            }
        entries.append(
            ZooEntry(name, group.truth, detector, attack, schedule, seed, overrides, drawn)
        )
    return entries


def _begins_with_clean(manifest: Manifest, entry: ZooEntry) -> bool:
    """Whether the training begins with a clean detector of the zoo's own."""
    begins = manifest.schedules[entry.schedule].get("start", "config") == CLEAN
    return begins and "start" not in manifest.detectors[entry.detector]


def _draw(name: str, what: str, count: int) -> int:
    """A number below ``count`` that follows from two words alone."""
    digest = hashlib.sha256(json.dumps([name, what]).encode()).digest()
    return int.from_bytes(digest[:8], "big") % count
