# SPDX-License-Identifier: Apache-2.0
"""What a scan found, as a repair can use it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from d2defense.checkpoint import CheckpointSource, file_sha256
from d2defense.detection.verdict import BACKDOORED, CLEAN
from d2defense.registry import REMOVAL_REGISTRY
from d2defense.removal.methods.unlearn import goal_entry
from d2defense.report.results import RESULT_FILE, read_result
from d2defense.triggers import Trigger

from .fine_tuning import DEFAULT_METHOD, FineTuningOptions

#: How thoroughly the scans of a repair search: it is done before and after.
SEARCH_LEVEL = "fast"
#: Goes by what a search has found.
SEARCHING_METHOD = "unlearn"
#: Goes by the triggers by which a bank has found something.
KNOWING_METHOD = "known_trigger"
#: For what is clean: it changes nothing.
KEEPING_METHOD = "keep"
# Excess beyond that of clean detectors from which on a repair goes by an arm.
_WORTH_TRYING = 0.1


def load_evidence(path: Path, source: CheckpointSource) -> dict[str, Any]:
    """The result of an earlier scan of this very checkpoint.

    Args:
        path: a ``result.json``, or the folder that holds it.
        source: the checkpoint that will be repaired.

    Raises:
        ValueError: the file is no result, that of a failed scan, or of other weights; the message
            names it.
    """
    path = path / RESULT_FILE if path.is_dir() else path
    result = read_result(path)
    if result["verdict"] == "error":
        raise ValueError(f"no evidence of what to reset: {result['error']}")
    if result["checkpoint"]["sha256"] != file_sha256(source.weights):
        raise ValueError(f"{path}: is the result of other weights than {source.weights}")
    return result


def describe_modules(result: dict[str, Any]) -> str:
    """One sentence on what a scan says of the modules to reset."""
    modules = ", ".join(result["dominant_modules"])
    if modules:
        return f"{result['verdict']} by the scan, which names {modules}"
    return f"{result['verdict']} by the scan, which names no module: those that classify proposals"


def searched_goals(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What a scan's search did better at than clean detectors' do, the best first.

    Where it has found something for sure, what clean detectors may show too is left out: to unlearn
    it costs AP and time.

    Args:
        result: of a scan.

    Returns:
        Goals as ``REMOVAL.UNLEARN.GOALS`` has them, each once; none without a search.
    """
    search = result.get("search") or {}
    margins = [(arm, (arm["excess"] or 0.0) - arm["baseline"]) for arm in search.get("arms", ())]
    worth = [pair for pair in margins if pair[1] > _WORTH_TRYING]
    # Older results do not say how far clean detectors differ.
    sure = [
        (arm, margin)
        for arm, margin in worth
        if margin > search["threshold"] * arm.get("deviation", 0.0)
    ]
    goals = [
        goal_entry(arm["effect"], arm["placement"], arm["target_class"], arm["budget"])
        for arm, _ in sure or worth
    ]
    return tuple(dict.fromkeys(goals))


def method_for(result: Mapping[str, Any], bank: Sequence[Trigger]) -> str:
    """The removal method that suits what a scan has found.

    ``keep`` where it has searched and calls it clean. One that goes by the trigger removes what the
    bank finds, as long as objects vanish, and costs least; one that goes by goals removes what a
    search finds (``docs/removal.md`` has the figures).

    Args:
        result: of a scan.
        bank: triggers that it may have tried.

    Returns:
        A name in ``REMOVAL_REGISTRY``.
    """
    if is_found_clean(result):
        return KEEPING_METHOD
    if _to_be_told(result):
        return SEARCHING_METHOD
    return KNOWING_METHOD if known_triggers(result, bank) else DEFAULT_METHOD


def describe_method(result: Mapping[str, Any], bank: Sequence[Trigger]) -> str:
    """What :func:`method_for` says, and why, in a few words."""
    why = "no search has found anything"
    if _by_bank(result):
        why = f"the bank has found it by {result['worst_trigger']}"
    goals = _to_be_told(result)
    if is_found_clean(result):
        why = "it is clean, and the search has found nothing"
    elif goals:
        why = f"a search reaches {', '.join(goals)}"
    return f"{method_for(result, bank)}, since {why}"


def is_found_clean(result: Mapping[str, Any]) -> bool:
    """Whether a scan calls it clean that has searched for more than its bank."""
    return result.get("verdict") == CLEAN and bool(result.get("search"))


def _to_be_told(result: Mapping[str, Any]) -> tuple[str, ...]:
    """What a search did better at than on clean detectors, but what the bank tells as well."""
    goals = searched_goals(result)
    vanishing = all(goal.startswith("disappearance ") for goal in goals)
    return () if _by_bank(result) and vanishing else goals


def _by_bank(result: Mapping[str, Any]) -> bool:
    """Whether the bank has found a backdoor, whatever a search has."""
    return (result.get("bank") or {}).get("verdict") == BACKDOORED


def known_triggers(result: Mapping[str, Any], bank: Sequence[Trigger]) -> tuple[str, ...]:
    """The triggers by which the bank has found a backdoor, the worst first.

    Args:
        result: of a scan.
        bank: that it may have tried.

    Returns:
        Entries as ``REMOVAL.KNOWN_TRIGGER.TRIGGERS`` has them; none of what the bank has not
        found, and of triggers that are not in it or take a file.
    """
    if not _by_bank(result):
        return ()
    by_name = {trigger.name: trigger for trigger in bank}
    entries = []
    for each in sorted(result["triggers"], key=lambda each: each["score"] or 0.0, reverse=True):
        if (each["score"] or 0.0) > result["bank"]["threshold"] and each["name"] in by_name:
            entry, content = by_name[each["name"]].to_entry("")
            entries += [] if content else [json.dumps(entry)]
    return tuple(entries)


def informed(
    options: FineTuningOptions,
    result: Mapping[str, Any],
    choose_method: bool,
    bank: Sequence[Trigger],
) -> FineTuningOptions:
    """The options of a fine-tuning with what a scan knows; what was asked for stays.

    Args:
        options: as they were asked for.
        result: of a scan.
        choose_method: take the method that suits what it has found.
        bank: triggers that it may have tried.
    """
    if choose_method:
        options = replace(options, method=method_for(result, bank))
    if options.modules is None and REMOVAL_REGISTRY.get(options.method).resets_modules:
        options = replace(options, modules=result["dominant_modules"] or None)
    return replace(options, overrides=[*overrides_of(result, bank), *options.overrides])


def excess_by_effect(result: Mapping[str, Any]) -> dict[str, float]:
    """How far the best of what a scan's search found goes beyond clean detectors, by effect.

    A success rate alone says nothing here: a patch that hides most of an object blinds every
    detector to it.

    Args:
        result: of a scan; without a search there is none.

    Returns:
        The largest excess less its baseline, 0..1, of each effect; 0 where clean detectors do as
        much.
    """
    beyond: dict[str, float] = {}
    for arm in (result.get("search") or {}).get("arms", ()):
        if arm["excess"] is not None:
            more = arm["excess"] - arm["baseline"]
            beyond[arm["effect"]] = max(more, beyond.get(arm["effect"], 0.0))
    return beyond


def overrides_of(result: Mapping[str, Any], bank: Sequence[Trigger]) -> list[str]:
    """KEY VALUE pairs of the configuration of a repair that goes by what a scan has found.

    Args:
        result: of a scan.
        bank: triggers that it may have tried.
    """
    found = {
        "REMOVAL.UNLEARN.GOALS": searched_goals(result),
        "REMOVAL.KNOWN_TRIGGER.TRIGGERS": known_triggers(result, bank),
    }
    return [part for key, value in found.items() if value for part in (key, str(value))]
