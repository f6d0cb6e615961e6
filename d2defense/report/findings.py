# SPDX-License-Identifier: Apache-2.0
"""What a code host is told of each checkpoint: a finding with a reason, a severity and help."""

from __future__ import annotations

from dataclasses import dataclass

from d2defense import text
from d2defense.report.results import Result, found_by_search

_MAX_TEXT = 2000


@dataclass(frozen=True)
class Rule:
    """A verdict that needs attention.

    Attributes:
        verdict: "backdoored", "uncertain" or "error".
        title: what it says, in a few words.
        help: what to do about it.
        level: "error" or "warning", as SARIF has them.
        severity: 0 to 10, as the scores of CVSS; code hosts sort by it.
    """

    verdict: str
    title: str
    help: str
    level: str
    severity: float


#: What needs attention most comes first. A clean checkpoint is no finding.
RULES = (
    Rule(
        "backdoored",
        "The detector reacts to a trigger as a backdoored one does",
        "Do not deploy the checkpoint. report.html shows the trigger that moves it most and what "
        "the trigger does. `d2defense repair` fine-tunes such a detector on clean images; or "
        "train it anew, from weights and data that you trust.",
        "error",
        9.0,
    ),
    Rule(
        "uncertain",
        "A backdoor could not be ruled out",
        "Do not deploy the checkpoint yet. The reason says what was missing: mostly more images, "
        "or images of the kind that the detector was trained for.",
        "warning",
        5.0,
    ),
    Rule(
        "error",
        "The checkpoint could not be scanned",
        "Nothing is known about the checkpoint, so do not deploy it. The reason names the file and "
        "what is wrong with it; weights need a config.yaml beside them.",
        "error",
        7.0,
    ),
)


@dataclass(frozen=True)
class CheckpointFinding:
    """One checkpoint for a code host; every text is printable.

    Attributes:
        rule: what holds of it; None for a clean one.
        name: of the checkpoint.
        reason: why the verdict is what it is, in a sentence or two.
    """

    rule: Rule | None
    name: str
    reason: str


def finding(result: Result) -> CheckpointFinding:
    """What a code host is told of a result."""
    rule = next((rule for rule in RULES if rule.verdict == result["verdict"]), None)
    if result["verdict"] == "error":
        reason = result["error"] or "unknown error"
    else:
        reason = f"{result.get('reason') or 'no reason given'}{_measured(result)}"
    return CheckpointFinding(
        rule, text.shorten(result["name"], _MAX_TEXT), text.shorten(reason, _MAX_TEXT)
    )


def reacting_trigger(result: Result) -> str:
    """What the verdict rests on: the bank's worst trigger, or what a search has found."""
    found = found_by_search(result)
    if found is None:
        return result["worst_trigger"] or text.DASH
    target = f" to {found['target_class']}" if found["target_class"] else ""
    return f"found: {found['effect']}{target}"


def _measured(result: Result) -> str:
    if result["score"] is None:
        return ""
    return (
        f" (score {text.number(result['score'])} {text.interval(result['score_interval'])}, "
        f"threshold {text.number(result['threshold'])}, trigger {reacting_trigger(result)})"
    )
