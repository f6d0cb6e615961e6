# SPDX-License-Identifier: Apache-2.0
"""A race of arms: all get a few steps, the best get more (successive halving)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ..images import CleanImage
from .arms import Arm, Goal, all_goals, starts
from .optimise import ArmState, judge_triggered, wanted_probability
from .scale import LogitScale

#: Told after every step.
OnStep = Callable[[], None]


@dataclass(frozen=True)
class RaceSettings:
    """How long a search takes.

    Attributes:
        scout_steps: of every target class, with one trigger.
        targets: target classes that go on, of an effect at a placement.
        heat_steps: of every family and budget, for these.
        finalists: arms that go on, of an effect at a placement.
        steps: of those, in all.
        batch_size: images of a step.
        families: of triggers; all if empty.
    """

    scout_steps: int = 12
    targets: int = 2
    heat_steps: int = 12
    finalists: int = 2
    steps: int = 60
    batch_size: int = 8
    families: tuple[str, ...] = ()

    def total_steps(self, class_names: Sequence[str]) -> int:
        """The steps of a whole race.

        Args:
            class_names: of the detector.
        """
        total = 0
        for placement, count in Counter(goal.kind for goal in all_goals(class_names)).items():
            triggers = len(starts(placement[1], self.families))
            if not triggers:
                continue
            scouts = count if count > self.targets else 0
            arms = min(count, self.targets) * triggers
            total += scouts * self.scout_steps + arms * self.heat_steps
            total += min(arms, self.finalists) * max(0, self.steps - self.heat_steps)
        return total


class Race:
    """The race of one detector's arms.

    Args:
        model: the suspect, in eval mode, its parameters without gradient.
        references: detectors that are held to be clean, with the scale of each.
        images: to search on.
        scale: of the suspect.
        settings: how long it takes.
        image_format: order of the channels, "BGR" or "RGB".
        seed: of batches and places.
        on_step: told after every step.
    """

    def __init__(
        self,
        model: nn.Module,
        references: Sequence[tuple[nn.Module, LogitScale]],
        images: Sequence[CleanImage],
        scale: LogitScale,
        settings: RaceSettings,
        image_format: str,
        seed: int = 0,
        on_step: OnStep = lambda: None,
    ) -> None:
        self._model = model
        self._references = references
        self._images = images
        self._scale = scale
        self._settings = settings
        self._format = image_format
        self._seed = seed
        self._on_step = on_step

    def run(self, class_names: Sequence[str]) -> list[ArmState]:
        """The finalists of every effect at every placement.

        Args:
            class_names: of the detector.
        """
        kinds: dict[tuple[str, str], list[Goal]] = {}
        for goal in all_goals(class_names):
            kinds.setdefault(goal.kind, []).append(goal)
        return [state for goals in kinds.values() for state in self._kind(goals)]

    def _kind(self, goals: Sequence[Goal]) -> list[ArmState]:
        settings = self._settings
        triggers = starts(goals[0].placement, settings.families)
        if not triggers:
            return []
        if len(goals) > settings.targets:
            scout = triggers[len(triggers) // 2]
            scouts = self._advance((Arm(goal, scout) for goal in goals), settings.scout_steps)
            goals = [state.arm.goal for state in self._best(scouts, settings.targets)]
        arms = (Arm(goal, trigger) for goal in goals for trigger in triggers)
        heat = self._advance(arms, settings.heat_steps)
        finalists = self._best(heat, settings.finalists)
        for state in finalists:
            self._take_steps(state, settings.steps)
        return finalists

    def _advance(self, arms: Iterable[Arm], steps: int) -> list[ArmState]:
        states = [ArmState.begin(arm, self._model.device) for arm in arms]
        for state in states:
            self._take_steps(state, steps)
        return states

    def _take_steps(self, state: ArmState, until: int) -> None:
        while state.steps < until:
            # The same batches for every arm.
            rng = np.random.default_rng([self._seed, state.steps])
            state.step(self._model, self._batch(rng), self._scale, self._format, state.steps)
            self._on_step()

    def _batch(self, rng: np.random.Generator) -> list[CleanImage]:
        count = min(self._settings.batch_size, len(self._images))
        chosen = rng.choice(len(self._images), count, replace=False)
        return [self._images[index] for index in chosen.tolist()]

    def _best(self, states: Sequence[ArmState], count: int) -> list[ArmState]:
        return sorted(states, key=self._excess, reverse=True)[:count]

    @torch.no_grad()
    def _excess(self, state: ArmState) -> float:
        """How much more the trigger does to the suspect than to the references, on one batch."""
        batch = self._batch(np.random.default_rng([self._seed, 1 << 20]))

        def effect(model: nn.Module, scale: LogitScale) -> float:
            output = judge_triggered(model, batch, state.arm, state.tensors, self._format, 0)
            return 0.0 if output is None else wanted_probability(scale(output), state.arm)

        others = [effect(*reference) for reference in self._references]
        return effect(self._model, self._scale) - (float(np.mean(others)) if others else 0.0)
