# SPDX-License-Identifier: Apache-2.0
"""Compare rules that turn a detector's statistics into one score.

First survey detectors whose nature is known, on one or more datasets; then compare the rules on
all of them. What was surveyed is kept, so that comparing again takes seconds.

    python benchmarks/score_study.py survey --dataset synth_signs_defender \\
        --clean clean_0 clean_1 --backdoored backdoored_0 --cache runs/score_study
    python benchmarks/score_study.py compare --cache runs/score_study
    python benchmarks/score_study.py compare --cache runs/score_study --without white
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from tabulate import tabulate

from d2defense.checkpoint import file_sha256, find_checkpoints
from d2defense.cli.arguments import (
    add_common_arguments,
    add_dataset_arguments,
    dataset_source,
)
from d2defense.cli.settings import add_settings_arguments, settings_config
from d2defense.detection import (
    Profile,
    ScanImages,
    ScanSettings,
    open_subject,
    survey_detector,
)
from d2defense.files import write_json, write_text
from d2defense.statistics import STATISTICS

# Which way a statistic goes under an attack: 1 up, -1 down.
DIRECTIONS = {
    "tau": 1,
    "confident_d": 1,
    "gap": 1,
    "objects_found": -1,
    "max_objectness": -1,
    "max_foreground": -1,
    "true_class": -1,
    "unmatched_foreground": 1,
}
# Least deviation of clean detectors, in the unit of the statistic: what few of them show of it
# is too small.
FLOORS = dict.fromkeys(STATISTICS, 0.02) | {"tau": 0.1, "unmatched_foreground": 0.2}
FALSE_ALARM_RATE = 0.01


class Entry(NamedTuple):
    """One surveyed detector."""

    profile: Profile
    backdoored: bool
    dataset: str


class Evidence(NamedTuple):
    """Changes the way an attack goes, (T, S), of one detector and of n clean ones, (n, T, S)."""

    changes: np.ndarray
    clean: np.ndarray
    floors: np.ndarray
    triggered: np.ndarray
    """The statistics themselves under the triggers, (T, S)."""


def standardized(evidence: Evidence) -> np.ndarray:
    """How far each change lies beyond the clean detectors', in their deviations; 0 for no data."""
    mean = np.nan_to_num(np.nanmean(evidence.clean, axis=0))
    deviation = np.nan_to_num(np.nanstd(evidence.clean, axis=0, ddof=1))
    count = len(evidence.clean)
    scale = np.maximum(deviation, evidence.floors) * np.sqrt(1 + 1 / count)
    return np.nan_to_num((evidence.changes - mean) / scale)


def p_values(evidence: Evidence) -> np.ndarray:
    """One-sided, of one more draw from a normal population of unknown mean and deviation."""
    return stats.t.sf(standardized(evidence), len(evidence.clean) - 1)


def largest(*names: str) -> Callable[[Evidence], float]:
    """The largest change of these statistics over the triggers, as it is."""
    columns = [STATISTICS.index(name) for name in names]
    return lambda e: float(np.nanmax(np.nan_to_num(e.changes[:, columns], nan=-1)))


def excess(*names: str) -> Callable[[Evidence], float]:
    """The largest change beyond the clean detectors' mean under the same trigger."""
    columns = [STATISTICS.index(name) for name in names]

    def score(e: Evidence) -> float:
        mean = np.nan_to_num(np.nanmean(e.clean, axis=0))
        return float(np.nan_to_num((e.changes - mean)[:, columns], nan=-1).max())

    return score


def largest_z(*names: str) -> Callable[[Evidence], float]:
    """The largest standardized change; Bonferroni's smallest p-value orders detectors alike."""
    columns = [STATISTICS.index(name) for name in names]
    return lambda e: float(standardized(e)[:, columns].max())


def fisher(e: Evidence) -> float:
    """Fisher's -2 sum log p over the statistics, the largest over the triggers."""
    return float((-2 * np.log(np.maximum(p_values(e), 1e-300))).sum(1).max())


def stouffer(e: Evidence) -> float:
    """Stouffer's sum of z over the statistics, the largest over the triggers."""
    z = standardized(e)
    return float((z.sum(1) / np.sqrt(z.shape[1])).max())


def paper(e: Evidence) -> float:
    """The paper's: tau itself on triggered images, the largest over the triggers."""
    return float(np.nan_to_num(e.triggered[:, STATISTICS.index("tau")]).max())


FALLS = ("max_foreground", "true_class")


class Rule(NamedTuple):
    """A candidate."""

    score: Callable[[Evidence], float]
    floor: float
    """Least deviation of clean detectors' scores, in the unit of the score."""


CANDIDATES: dict[str, Rule] = {
    **{f"largest change of {name}": Rule(largest(name), FLOORS[name]) for name in STATISTICS},
    "paper: largest tau under a trigger": Rule(paper, 0.05),
    "largest fall of max_foreground or true_class": Rule(largest(*FALLS), 0.02),
    "excess of max_foreground or true_class": Rule(excess(*FALLS), 0.02),
    "largest z of max_foreground or true_class": Rule(largest_z(*FALLS), 1),
    "largest z of these or unmatched_foreground": Rule(
        largest_z(*FALLS, "unmatched_foreground"), 1
    ),
    "largest z over all (smallest p, Bonferroni)": Rule(largest_z(*STATISTICS), 1),
    # Of the sum of 8 independent terms: chi-squared with 16 degrees of freedom, normal.
    "Fisher over statistics, largest over triggers": Rule(fisher, 32**0.5),
    "Stouffer over statistics, largest over triggers": Rule(stouffer, 1),
}


def survey_detectors(args: argparse.Namespace) -> int:
    """Survey and keep what is not yet kept."""
    cfg = settings_config(args, args.parser)
    settings = ScanSettings.from_config(cfg)
    images = ScanImages.load(dataset_source(args, args.parser), settings)
    fingerprints = [trigger.fingerprint for trigger in settings.triggers]
    for label, paths in (("clean", args.clean), ("backdoored", args.backdoored)):
        for source in find_checkpoints(paths, only_final=True):
            if source.error:
                raise SystemExit(str(source.error))
            sha256 = file_sha256(source.weights)
            content = [sha256, images.fingerprint, fingerprints, repr(settings.observation)]
            key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
            path = args.cache / f"{key}.json"
            if path.exists():
                continue
            model, loaded, cfg = open_subject(source, images, settings, args.device)
            seen = survey_detector(model, loaded, settings, cfg.INPUT.FORMAT)
            profile = Profile.from_survey(seen, source.name, sha256)
            write_json(
                path,
                {
                    "label": label,
                    "dataset": Path(images.name).name,
                    "fingerprint": images.fingerprint,
                    "profile": profile.as_dict(),
                },
            )
            print(f"{label} {source.name}", file=sys.stderr, flush=True)
    return 0


def load_entries(cache: Path) -> list[Entry]:
    """Everything that was surveyed into a folder, by name."""
    entries = {}
    for path in sorted(cache.glob("*.json"), key=lambda path: path.stat().st_mtime):
        content = json.loads(path.read_text(encoding="utf-8"))
        profile = Profile.from_dict(content["profile"])
        # A detector that was surveyed twice counts once, or it would be compared with itself.
        entries[profile.sha256, content["fingerprint"]] = Entry(
            profile, content["label"] == "backdoored", content["dataset"]
        )
    return sorted(entries.values(), key=lambda entry: (entry.backdoored, entry.profile.name))


def evidence_of(entries: Sequence[Entry], triggers: Sequence[str]) -> list[Evidence]:
    """The evidence on every detector; a clean one is never compared with itself."""
    signs = np.array([DIRECTIONS[name] for name in STATISTICS])
    floors = np.array([FLOORS[name] for name in STATISTICS])
    arrays = [entry.profile.arrays(triggers, STATISTICS) for entry in entries]
    changes = [signs * (under - clean) for clean, under in arrays]
    found = []
    for index, (_, under) in enumerate(arrays):
        others = [
            changes[other]
            for other, entry in enumerate(entries)
            if other != index and not entry.backdoored
        ]
        found.append(Evidence(changes[index], np.stack(others), floors, under))
    return found


def compare_rule(
    rule: Rule, entries: Sequence[Entry], evidence: Sequence[Evidence]
) -> dict[str, Any]:
    """How well one rule tells the backdoored from the clean.

    The margin is the distance from the highest clean to the lowest backdoored score, as a share of
    that between the medians: 1 at best, negative where they overlap.
    """
    scores = np.array([rule.score(e) for e in evidence])
    backdoored = np.array([entry.backdoored for entry in entries])
    clean, bad = scores[~backdoored], scores[backdoored]
    auc = np.mean([(b > clean).mean() + (b == clean).mean() / 2 for b in bad])

    def threshold(values: np.ndarray) -> float:
        quantile = stats.t.isf(FALSE_ALARM_RATE, len(values) - 1)
        deviation = max(values.std(ddof=1), rule.floor)
        return values.mean() + quantile * deviation * np.sqrt(1 + 1 / len(values))

    alarms = sum(score > threshold(np.delete(clean, index)) for index, score in enumerate(clean))
    distance = np.median(bad) - np.median(clean)
    margin = (bad.min() - clean.max()) / distance if distance > 0 else None
    return {
        "AUC": auc,
        "found at 1 %": f"{(bad > threshold(clean)).sum()}/{len(bad)}",
        "false alarms": f"{alarms}/{len(clean)}",
        "highest clean": clean.max(),
        "lowest backdoored": bad.min(),
        "margin": margin,
    }


def compare(args: argparse.Namespace) -> int:
    """Print and write the table of all rules."""
    entries = load_entries(args.cache)
    if args.only_dataset:
        entries = [entry for entry in entries if entry.dataset in args.only_dataset]
    common = set.intersection(*(set(entry.profile.triggered) for entry in entries))
    triggers = [t for t in entries[0].profile.triggered if t in common and t not in args.without]
    evidence = evidence_of(entries, triggers)
    rows = [
        {"rule": name, **compare_rule(rule, entries, evidence)} for name, rule in CANDIDATES.items()
    ]
    counts = [sum(entry.backdoored is label for entry in entries) for label in (False, True)]
    text = (
        f"{counts[0]} clean and {counts[1]} backdoored detectors, {len(triggers)} triggers\n\n"
        + tabulate(
            rows, headers="keys", tablefmt="github", floatfmt=".3f", missingval="\N{EN DASH}"
        )
        + "\n"
    )
    print(text)
    if args.output:
        write_text(args.output, text)
    if args.scores:
        for entry, e in zip(entries, evidence, strict=True):
            row = "  ".join(f"{CANDIDATES[name].score(e):.3f}" for name in args.scores)
            print(f"{entry.profile.name:20} {entry.dataset:24} {row}")
    return 0


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("survey", help="survey detectors whose nature is known")
    one.add_argument("--clean", nargs="+", default=[], metavar="CHECKPOINT")
    one.add_argument("--backdoored", nargs="+", default=[], metavar="CHECKPOINT")
    add_settings_arguments(one)
    add_dataset_arguments(one)
    add_common_arguments(one)
    one.set_defaults(run=survey_detectors, parser=one)
    two = commands.add_parser("compare", help="compare the rules on all of them")
    two.add_argument("--without", nargs="+", default=[], metavar="TRIGGER", help="leave these out")
    two.add_argument("--only-dataset", nargs="+", metavar="NAME", help="detectors of these alone")
    two.add_argument("--scores", nargs="+", metavar="RULE", help="also print each detector's score")
    two.add_argument("--output", type=Path, metavar="FILE", help="Markdown")
    two.set_defaults(run=compare)
    for command in (one, two):
        command.add_argument("--cache", type=Path, required=True, metavar="DIR")
    args = parser.parse_args()
    return args.run(args)


if __name__ == "__main__":
    raise SystemExit(main())
