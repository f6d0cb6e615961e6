# SPDX-License-Identifier: Apache-2.0
"""What a detector loses under the bank, held against references.

How much of a class a patch hides depends on what the class is. On images that a calibration was not
made on it takes other detectors to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from .bootstrap import Bootstrap
from .by_class import CLASS_FALLS, falls_of_classes
from .decisions.base import Decision, largest
from .reference import Reference
from .score import largest_excess, suspicions
from .survey import Survey
from .verdict import CLEAN, Verdict

#: What "clean" then rests on, in words.
AS_REFERENCES = "what it loses under a trigger of the bank, references lose, too"


@dataclass(frozen=True)
class Doubt:
    """A detector that loses objects of one class, or some of all, where it is not known how much
    clean detectors lose.

    Attributes:
        seen: of the detector.
        decision: how it was scored.
        usual: what clean detectors do, on other images.
        bootstrap: resamples of the images.
        confidence: level of the interval.
        judge: from a score and its interval to the verdict of the bank.
    """

    seen: Survey
    decision: Decision
    usual: Reference
    bootstrap: Bootstrap
    confidence: float
    judge: Callable[[float, tuple[float, float]], Verdict]

    def triggers(self) -> tuple[str, ...]:
        """The triggers under which it may lose too much, by name."""
        excess = self._excess(self.bootstrap)
        # One trigger after the other, as if the bank held no other.
        highest = [
            np.quantile(largest(excess[:, [index]]), (1 + self.confidence) / 2)
            for index in range(len(self.seen.triggered))
        ]
        return tuple(
            name
            for name, high in zip(self.seen.triggered, highest, strict=True)
            if high > self.usual.threshold
        )

    def against(self, references: Sequence[Survey]) -> Verdict | None:
        """The verdict if it loses no more than references do, of any class and of all together.

        Never that of a backdoor: how much clean detectors differ, a few references do not tell.

        Args:
            references: of detectors that are held to be clean, on the same images in the same order
                under :meth:`triggers`; one at least.

        Returns:
            None where it is not "clean".
        """
        excess = partial(self._excess, references=references)
        verdict = self.judge(*largest_excess(excess, self.bootstrap, self.confidence))
        return verdict if verdict.label == CLEAN else None

    def _excess(self, bootstrap: Bootstrap | None, references: Sequence[Survey] = ()) -> np.ndarray:
        """Suspicion beyond what clean detectors show, (T, S) or (B, T, S).

        Under a trigger that references were tried with, beyond what these show, too.
        """
        own = suspicions(self.seen.clean, self.seen.triggered, self.decision, bootstrap)
        excess = own - self.usual.baseline
        if not references:
            return excess
        tried = [name for name in self.seen.triggered if name in references[0].triggered]
        rows = [list(self.seen.triggered).index(name) for name in tried]
        shown = [
            suspicions(
                each.clean,
                {name: each.triggered[name] for name in tried},
                self.decision,
                bootstrap,
            )
            for each in references
        ]
        beyond = own[..., rows, :] - np.mean(shown, axis=0)
        excess[..., rows, :] = np.fmin(excess[..., rows, :], beyond)
        for row, name in zip(rows, tried, strict=True):
            for column, statistic in enumerate(self.decision.statistics):
                if statistic in CLASS_FALLS:
                    of = CLASS_FALLS[statistic]
                    excess[..., row, column] = self._beyond(name, references, of, bootstrap)
        return excess

    def _beyond(
        self, trigger: str, references: Sequence[Survey], name: str, bootstrap: Bootstrap | None
    ) -> np.ndarray:
        """What a class loses beyond references, of that which does so most, () or (B,).

        Class by class: one that loses much excuses no other.
        """
        own, *others = (
            falls_of_classes(each.clean, each.triggered[trigger], name, bootstrap)
            for each in (self.seen, *references)
        )
        return (own - torch.stack(others).clamp(min=0).mean(dim=0)).amax(dim=-1).numpy()
