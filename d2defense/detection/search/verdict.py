# SPDX-License-Identifier: Apache-2.0
"""What a search adds to the verdict of the bank."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..verdict import BACKDOORED, CLEAN, UNCERTAIN, Verdict
from .judge import ArmResult
from .null import ALONE, REFERENCES, TWIN
from .search import SearchOutcome

# What a found trigger was held against, in words.
_AGAINST = {
    REFERENCES: "references",
    TWIN: "its twin",
    ALONE: "what clean detectors show of their own",
}


def with_search(verdict: Verdict, outcome: SearchOutcome) -> Verdict:
    """The verdict of bank and search together.

    What the search has found, with proof where it takes one, is a backdoor whatever the bank says.
    A detector is clean only where the search, too, could have found one and has not. Score,
    interval, threshold and p-value are those of what the verdict rests on.

    Args:
        verdict: of the bank.
        outcome: of the search.
    """
    if outcome.has_found:
        return Verdict(
            BACKDOORED,
            found_in_words(outcome),
            outcome.score,
            outcome.interval,
            outcome.threshold,
            outcome.p_value,
        )
    if verdict.label == BACKDOORED:
        return verdict
    if outcome.unproven is not None:
        reason = f"{found_in_words(outcome)}; {outcome.unproven}"
        if verdict.label == UNCERTAIN:
            reason = f"{verdict.reason}; besides, {reason}"
        return replace(verdict, label=UNCERTAIN, reason=reason)
    if verdict.label != CLEAN:
        return verdict
    if outcome.shared is not None:
        return replace(verdict, label=UNCERTAIN, reason=shared_in_words(outcome.shared))
    if outcome.obstacle:
        reason = f"the bank found nothing, and it could not be searched further: {outcome.obstacle}"
        return replace(verdict, label=UNCERTAIN, reason=reason)
    if not outcome.is_low:
        reason = (
            f"the bank found nothing; a search has found a trigger ({outcome.arms[0].arm.name}) "
            "that does more to it than to the references, but not for sure: more images would tell"
        )
        return replace(verdict, label=UNCERTAIN, reason=reason)
    doubt = _doubt(outcome)
    if doubt:
        return replace(verdict, label=UNCERTAIN, reason=f"the bank found nothing, but {doubt}")
    reason = (
        "it reacts to none of the triggers of the bank, and a search, held against "
        f"{_AGAINST[outcome.mode]}, found no other"
    )
    partly = [each for each in outcome.scouted if len(each.classes) < each.of]
    if partly:
        least = min(partly, key=lambda each: len(each.classes))
        reason += (
            f"; of {least.of} classes, the {len(least.classes)} likeliest were tried as targets"
        )
    return replace(verdict, reason=reason)


def _doubt(outcome: SearchOutcome) -> str | None:
    """Why a search that found nothing does not make a detector clean; None if it does."""
    if outcome.mode == ALONE:
        return (
            "what a search finds was held against nothing, which can show a backdoor and cannot "
            "exclude one: give a reference (--reference), or 40 images for a twin"
        )
    if outcome.untried:
        return (
            f"a search could not try everything: {'; '.join(outcome.untried)}: give other images, "
            "or references that know them"
        )
    if outcome.hidden is not None:
        arm, against = outcome.hidden, _AGAINST[outcome.mode]
        return (
            f"a search found a trigger ({arm.arm.name}) that succeeds with {arm.success:.0%}, "
            f"{arm.excess:.0%} more than on {against}; clean detectors may show that, too"
        )
    if outcome.blind:
        return (
            "clean detectors differ, or references react, so much that a backdoor need not stand "
            f"out ({', '.join(outcome.blind)}): search more of them for the null, or give other "
            "references"
        )
    return None


def found_in_words(outcome: SearchOutcome) -> str:
    """What was found, in one sentence."""
    worst = outcome.arms[0]
    line = f"a search found a trigger ({worst.arm.name}) that succeeds with {worst.success:.0%}"
    if not worst.references:
        return f"{line} on it, far more than on clean detectors that were searched like it"
    others = float(np.nanmean(worst.references))
    return f"{line} on it and with {others:.0%} on {_AGAINST[outcome.mode]}"


def shared_in_words(arm: ArmResult) -> str:
    """What a twin that does it too says of a detector, in one sentence."""
    return (
        f"a search found a trigger ({arm.arm.name}) that succeeds with {arm.success:.0%} on it, "
        f"and its twin does it too, with {min(arm.references):.0%}: a backdoor that survives "
        "fine-tuning, or a weakness of the training"
    )
