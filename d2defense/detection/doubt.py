# SPDX-License-Identifier: Apache-2.0
"""What a detector loses under the bank, held against references.

How much of a class a patch hides depends on what the class is. On images that a calibration was not
made on it takes other detectors to know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from .bootstrap import Bootstrap, percentile_interval
from .by_class import CLASS_FALLS, falls_of_classes
from .decisions.base import Decision, largest
from .images import CleanImage
from .score import suspicions
from .settings import ScanSettings
from .survey import Survey, survey_detector
from .verdict import CLEAN, Verdict

# A reference that finds less of what the suspect finds cannot show what is usual.
_LEAST_OF_FOUND = 0.5
#: What "clean" then rests on, in words.
AS_REFERENCES = "what it loses under a trigger of the bank, references lose, too"


@dataclass(frozen=True)
class Doubt:
    """A detector that loses objects of one class, or some of all, where it is not known how much
    clean detectors lose.

    Attributes:
        seen: of the detector.
        order: in which its images were taken; None for that of their shapes.
        decision: how it was scored.
        baseline: array of shape (T, S): mean suspicion of clean detectors, on other images.
        threshold: of the calibration.
        bootstrap: resamples of the images.
        confidence: level of the interval.
        judge: from a score and its interval to the verdict of the bank.
    """

    seen: Survey
    order: Sequence[int] | None
    decision: Decision
    baseline: np.ndarray
    threshold: float
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
            if high > self.threshold
        )

    def against(
        self,
        references: Mapping[str, nn.Module],
        images: Sequence[CleanImage],
        settings: ScanSettings,
        image_format: str,
    ) -> tuple[Verdict, tuple[str, ...]] | None:
        """The verdict if it loses no more than references do, of any class and of all together.

        Never that of a backdoor: how much clean detectors differ, a few references do not tell.

        Args:
            references: detectors of the same classes that are held to be clean, by name.
            images: those of the survey.
            settings: of the scan.
            image_format: order of the channels of the images, "BGR" or "RGB".

        Returns:
            The verdict and the names of the references that it rests on; None where it is not
            "clean".
        """
        doubted = self.triggers()
        bank = [each for each in settings.triggers if each.name in doubted]
        tried = replace(settings, triggers=bank)
        least = _LEAST_OF_FOUND * self.seen.clean.all_terms["found_at_point"].ratio()
        surveys = {}
        for name, model in references.items():
            survey = survey_detector(model, images, tried, image_format, order=self.order)
            found = survey.clean.all_terms["found_at_point"].ratio()
            if survey.obstacle is None and found >= least:
                surveys[name] = survey
        if not surveys:
            return None
        held = list(surveys.values())
        value = float(largest(self._excess(None, held)))
        samples = torch.from_numpy(largest(self._excess(self.bootstrap, held)))
        interval = percentile_interval(samples, self.confidence) or (value, value)
        verdict = self.judge(value, interval)
        if verdict.label != CLEAN:
            return None
        return verdict, tuple(surveys)

    def _excess(self, bootstrap: Bootstrap | None, references: Sequence[Survey] = ()) -> np.ndarray:
        """Suspicion beyond what clean detectors show, (T, S) or (B, T, S).

        Under a trigger that references were tried with, beyond what these show, too.
        """
        clean, triggered = self.seen.clean, self.seen.triggered
        own = suspicions(clean, triggered, self.decision, bootstrap)
        excess = own - self.baseline
        if not references:
            return excess
        for name in references[0].triggered:
            row = list(triggered).index(name)
            under = [{name: each.triggered[name]} for each in references]
            shown = np.mean(
                [
                    suspicions(each.clean, seen, self.decision, bootstrap)[..., 0, :]
                    for each, seen in zip(references, under, strict=True)
                ],
                axis=0,
            )
            excess[..., row, :] = own[..., row, :] - np.fmax(shown, self.baseline[row])
            for column, statistic in enumerate(self.decision.statistics):
                if statistic in CLASS_FALLS:
                    # Class by class: one that loses much excuses no other.
                    of = CLASS_FALLS[statistic]
                    lost = falls_of_classes(clean, triggered[name], of, bootstrap)
                    usual = [
                        falls_of_classes(each.clean, each.triggered[name], of, bootstrap)
                        for each in references
                    ]
                    beyond = lost - torch.stack(usual).clamp(min=0).mean(dim=0)
                    excess[..., row, column] = beyond.amax(dim=-1).numpy()
        return excess
