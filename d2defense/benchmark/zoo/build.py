# SPDX-License-Identifier: Apache-2.0
"""Training what a zoo lacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from d2defense.study.runner import run_steps
from d2defense.study.steps import Step, StepResults
from d2defense.study.workplace import Workplace

from .compose import digest, training_config
from .entries import ZooEntry, expand, matching
from .index import write_index
from .manifest import CLEAN, OWN, Manifest, ManifestError

_ACTIONS = "d2defense.benchmark.zoo.actions"
TRAINING = "training"


@dataclass(frozen=True)
class Built:
    """What became of the detectors that were asked for.

    Attributes:
        detectors: how many were asked for.
        there: how many of them are in the zoo now.
        failed: one line each, by the step that failed.
    """

    detectors: int
    there: int
    failed: dict[str, str]


def build_zoo(
    manifest: Manifest,
    output: Path,
    workers: int = 1,
    pattern: str = "",
    limit: int | None = None,
    num_gpus: int = 0,
    ray_address: str | None = None,
) -> Built:
    """Train, measure and publish the detectors of a manifest that are not there yet.

    A training that was killed goes on; what is done is not done again, unless the manifest or its
    configs say something else now.

    Args:
        manifest: says which.
        output: the zoo's folder: ``index.json``, ``detectors/``, and ``training/``, which may be
            deleted once the zoo is complete.
        workers: trainings at a time, each of one thread.
        pattern: only those whose name matches it, and what they begin with; all if empty.
        limit: only the first so many of these.
        num_gpus: that a training uses.
        ray_address: of a Ray cluster that does the work; it shares this folder.

    Raises:
        ManifestError: nothing matches, or a config or an override that does not fit.
        UsageError: Ray is not installed, or its cluster cannot be reached.
    """
    chosen = matching(expand(manifest), pattern, limit)
    if not chosen:
        raise ManifestError(f"manifest {manifest.name}: no detector matches {pattern!r}")
    output = output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    steps = zoo_steps(manifest, chosen)
    workplace = Workplace(output, threads=1, num_gpus=num_gpus)
    failed = run_steps(steps, workplace, workers, ray_address)
    results = StepResults(output)
    there = sum(results.get(step) is not None for step in steps)
    if there:
        # Two that were published at once may each have left the other out.
        write_index(output)
    return Built(len(steps), there, failed)


def zoo_steps(manifest: Manifest, chosen: Sequence[ZooEntry]) -> list[Step]:
    """The step that publishes each of the detectors, with those that it needs.

    Raises:
        ManifestError: a config or an override that does not fit.
    """
    known = {entry.name: entry for entry in expand(manifest)}
    for name in manifest.control:
        if name.startswith(OWN) and name.removeprefix(OWN) not in known:
            raise ManifestError(f"manifest {manifest.name}: control: no detector {name}")
    trainings: dict[str, Step] = {}
    return [_publishing(manifest, entry, known, trainings) for entry in chosen]


def _training(manifest: Manifest, entry: ZooEntry, known: dict[str, Step]) -> Step:
    if entry.name not in known:
        needs = {"start": _training(manifest, entry.start, known)} if entry.start else {}
        arguments = {"output": f"{TRAINING}/{entry.name}", "digest": digest(manifest, entry)}
        known[entry.name] = Step(
            f"train/{entry.name}",
            f"{_ACTIONS}:train",
            arguments,
            needs,
            {"config": training_config(manifest, entry).dump()},
        )
    return known[entry.name]


def _publishing(
    manifest: Manifest, entry: ZooEntry, entries: Mapping[str, ZooEntry], known: dict[str, Step]
) -> Step:
    training = _training(manifest, entry, known)
    attack = training_config(manifest, entry).ATTACK
    is_clean = entry.truth == CLEAN
    facts = {
        "name": entry.name,
        "zoo": manifest.name,
        "truth": entry.truth,
        "detector": entry.detector,
        "attack": entry.attack,
        "effect": "" if is_clean else attack.EFFECT,
        "family": "" if is_clean else attack.TRIGGER.FAMILY,
        "target_class": "" if is_clean else attack.TARGET_CLASS,
        "schedule": entry.schedule,
        "seed": entry.seed,
        "training_seed": entry.training_seed,
        "drawn": dict(entry.drawn),
        "start": entry.start and entry.start.name,
        "sequestered": entry.is_sequestered,
    }
    arguments = {
        "facts": facts,
        "test": manifest.data["test"],
        "control": list(manifest.control),
    }
    own = [name.removeprefix(OWN) for name in manifest.control if name.startswith(OWN)]
    controls = {name: _training(manifest, entries[name], known) for name in own}
    return Step(
        f"publish/{entry.name}",
        f"{_ACTIONS}:publish",
        arguments,
        {"model": training, **controls},
        {"config": training.unkeyed["config"]},
    )
