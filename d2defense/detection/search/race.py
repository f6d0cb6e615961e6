# SPDX-License-Identifier: Apache-2.0
"""A race of arms: all get a few steps, the best get more (successive halving)."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from d2defense.memory import available_bytes
from d2defense.modeling import kept_for_backward
from d2defense.parallel import side_by_side
from d2defense.triggers import Trigger

from ..images import CleanImage
from ..scale import LogitScale
from .arms import Arm, Goal, all_goals, starts
from .optimise import (
    ArmState,
    Loss,
    judge_views,
    looked_at,
    model_classes,
    wanted_probability,
)
from .targets import broadest, class_probabilities, own_classes, toward_any

# So much the largest of several classes lies above their mean by chance, on one batch.
_STANDS_OUT = 0.3
# Of the memory there is, what steps may keep for their backward passes, which take as much again.
_MEMORY_SHARE = 0.4
# Fewer objects of a class on it say nothing.
_LEAST_OBJECTS = 3
#: Told after every step.
OnStep = Callable[[], None]
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True)
class RaceSettings:
    """How long a search takes.

    Attributes:
        scouted: target classes of an effect at a placement that are scouted: all where there are
            no more; else those that a screening finds most promising.
        scout_steps: of every scouted class, with one trigger.
        targets: target classes that go on, of an effect at a placement.
        heat_steps: of every family and budget, for these.
        finalists: arms that go on, of an effect at a placement; the best of each family first.
        steps: of those, in all.
        batch_size: images of a step.
        families: of triggers; all if empty.
        at_a_time: arms that are taken through their steps at the same time, at most, on a CPU; as
            many lie in memory.
    """

    scouted: int = 8
    scout_steps: int = 12
    targets: int = 2
    heat_steps: int = 12
    finalists: int = 2
    steps: int = 60
    batch_size: int = 8
    families: tuple[str, ...] = ()
    at_a_time: int = 8

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
            if count > self.scouted:
                total += self.spread * self.scout_steps
            scouts = min(count, self.scouted)
            total += (scouts if scouts > self.targets else 0) * self.scout_steps
            arms = min(scouts, self.targets) * triggers
            total += arms * self.heat_steps
            total += min(arms, self.finalists) * max(0, self.steps - self.heat_steps)
        return total

    def for_large_images(self) -> RaceSettings:
        """About half as long: what a step costs grows with the image, and so does measuring.

        Fewer classes are scouted, an effect at a placement has one finalist with two thirds of the
        steps, and a step has half the images, each a crop. One arm at a time: a step takes much
        memory, and its operations are large enough for several threads.
        """
        return replace(
            self,
            scouted=max(2, self.scouted * 3 // 4),
            finalists=max(1, self.finalists // 2),
            steps=self.steps * 2 // 3,
            batch_size=self.batch_size // 2,
            at_a_time=1,
        )

    @property
    def spread(self) -> int:
        """Triggers that are taken to whichever target class is the easiest, before scouting."""
        return max(1, self.scouted // 4)


@dataclass(frozen=True)
class Scouted:
    """Which target classes of an effect at a placement were tried.

    Attributes:
        effect: its name.
        placement: likewise.
        classes: names of the target classes, the most promising first where they were chosen.
        of: how many there are.
    """

    effect: str
    placement: str
    classes: tuple[str, ...]
    of: int


class _Lead(NamedTuple):
    """The class whose objects a trigger takes most."""

    category: int
    """Its index."""
    excess: float
    """What the trigger does to its objects beyond what it does to the references'."""
    beyond: float
    """The same beyond the mean of the other classes."""


class _Field(NamedTuple):
    """An effect at a placement, as far as it is still tried."""

    goals: Sequence[Goal]
    """One of each target class."""
    triggers: Sequence[Trigger]
    """To start from."""

    def arms(self, triggers: Sequence[Trigger]) -> list[Arm]:
        """Every goal with each of some triggers."""
        return [Arm(goal, trigger) for goal in self.goals for trigger in triggers]

    def scouted(self, class_names: Sequence[str], of: int) -> Scouted:
        """Which of so many target classes these are."""
        names = tuple(class_names[goal.target_class] for goal in self.goals)
        return Scouted(*self.goals[0].kind, names, of)


def scout_of(triggers: Sequence[Trigger]) -> Trigger:
    """The trigger by which target classes are compared: a middling one of the most varied family.

    Args:
        triggers: that a search starts from, those of a family by rising budget; one at least.
    """
    families = Counter(trigger.family for trigger in triggers)
    (family, count), *_ = families.most_common(1)
    return [trigger for trigger in triggers if trigger.family == family][count // 2]


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
        on_step: told after every step, by one thread at a time.
        reference_weight: what an effect on the references counts against that on the suspect.
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
        reference_weight: float = 1.0,
    ) -> None:
        self._model = model
        self._references = references
        self._images = images
        self._scale = scale
        self._settings = settings
        self._format = image_format
        self._seed = seed
        self._on_step, self._telling = on_step, threading.Lock()
        self._reference_weight = reference_weight
        #: Arms that go through their steps at the same time, at most: fewer where memory is short.
        self.at_a_time = settings.at_a_time
        #: Of each effect with a target class, at each placement.
        self.scouted: list[Scouted] = []
        self._begun: list[ArmState] = []

    def run(
        self, class_names: Sequence[str], goals: Iterable[Goal] | None = None
    ) -> list[ArmState]:
        """The finalists of every effect at every placement.

        Args:
            class_names: of the detector.
            goals: what is tried; all that can be if None.
        """
        settings = self._settings
        kinds: dict[tuple[str, str], list[Goal]] = {}
        for goal in all_goals(class_names) if goals is None else goals:
            kinds.setdefault(goal.kind, []).append(goal)
        fields = [
            _Field(goals, starts(placement, settings.families))
            for (_, placement), goals in kinds.items()
        ]
        # Those of all kinds go through each stage together: there are more to take side by side.
        fields = [field for field in fields if field.triggers]
        if fields:
            self.at_a_time = self._fitting(Arm(fields[0].goals[0], fields[0].triggers[0]))
        counts = [len(field.goals) for field in fields]
        fields = self._side_by_side(self._screened, fields)
        self.scouted += [
            field.scouted(class_names, count)
            for field, count in zip(fields, counts, strict=True)
            if field.goals[0].target_class is not None
        ]
        scouts = self._advance(
            (
                field.arms([scout_of(field.triggers)])
                if len(field.goals) > settings.targets
                else []
                for field in fields
            ),
            settings.scout_steps,
        )
        fields = [
            field._replace(goals=[state.arm.goal for state in best] or field.goals)
            for field, best in zip(fields, self._best(scouts, settings.targets), strict=True)
        ]
        heat = self._advance((field.arms(field.triggers) for field in fields), settings.heat_steps)
        finalists = [state for states in self._finalists(heat) for state in states]
        self._side_by_side(lambda state: self._take_steps(state, settings.steps), finalists)
        narrowed = self._side_by_side(lambda state: self._narrowed(state, class_names), finalists)
        return finalists + [state for state in narrowed if state is not None]

    def compared(self) -> list[tuple[Arm, float]]:
        """The arms that were held against the references, with what they do to these, 0..1.

        Those that would have been measured, had they done more to the suspect.
        """
        held = [each for each in self._begun if each.on_references is not None]
        return [(each.arm, each.on_references) for each in held]

    def without_gradient(self) -> list[str]:
        """Effects at placements that could not be searched: nothing depends on any trigger."""
        looked = [each for each in self._begun if each.has_gradient is not None]
        moved = {each.arm.goal.kind for each in looked if each.has_gradient}
        still = {each.arm.goal.kind for each in looked} - moved
        return sorted(" on ".join(kind) for kind in still)

    def best_so_far(self) -> list[ArmState]:
        """Of a race that was broken off the best arm of every effect at every placement.

        The most promising first; those of the effects that have got no step are left out.
        """
        best: dict[tuple[str, str], ArmState] = {}
        for state in self._begun:
            if state.steps:
                known = best.setdefault(state.arm.goal.kind, state)
                if state.effect > known.effect:
                    best[state.arm.goal.kind] = state
        (ranked,) = self._best([list(best.values())], len(best))
        return ranked

    def _narrowed(self, state: ArmState, class_names: Sequence[str]) -> ArmState | None:
        """A finalist gone on with on one class, if its excess sits there; None if it does not."""
        lead = self._lead(state)
        if lead is None or lead.beyond < _STANDS_OUT:
            return None
        goal = state.arm.goal.of_class(lead.category, class_names)
        narrowed = ArmState.begin(Arm(goal, state.arm.start), self._model.device, state.tensors)
        self._take_steps(narrowed, self._settings.heat_steps)
        return narrowed

    def _screened(self, field: _Field) -> _Field:
        """The field with the target classes that are worth scouting, all if they are few.

        First the classes that a trigger is taken to that may take any; then those to which regions
        lean under random ones (ODSCAN, IEEE S&P 2024, section 4). Both beyond the references.
        """
        goals, triggers = field
        if len(goals) <= self._settings.scouted:
            return field
        settings = self._settings
        classes = torch.cat([image.classes for image in self._images])
        goal = broadest(goals, classes)
        if not looked_at(self._probed(), goal, 0):
            return field._replace(goals=goals[: settings.scouted])
        left = {each.target_class: each for each in goals}
        chosen = []
        for _ in range(settings.spread):
            state = ArmState.begin(Arm(goal, scout_of(triggers)), self._model.device)
            self._take_steps(state, settings.scout_steps, toward_any(goal, left))
            lean = self._lean(state.arm, state.tensors)
            chosen.append(left.pop(max(left, key=lambda each: float(lean[each]))))
        leans = self._side_by_side(
            lambda each: self._lean(Arm(goal, each), each.tensors()), triggers
        )
        lean = torch.stack(leans).mean(dim=0)
        promising = sorted(left, key=lambda each: float(lean[each]), reverse=True)
        chosen += [left[each] for each in promising[: settings.scouted - len(chosen)]]
        return field._replace(goals=chosen)

    @torch.no_grad()
    def _lean(self, arm: Arm, tensors: Mapping[str, Tensor]) -> Tensor:
        """Mean probability of each class over regions of others, beyond the references', (K,)."""
        views = looked_at(self._probed(), arm.goal, 0)

        def lean(model: nn.Module, scale: LogitScale) -> Tensor:
            output = scale(judge_views(model, views, arm, tensors, self._format))
            return class_probabilities(output, views, arm.goal).cpu()

        others = [lean(*reference) for reference in self._references]
        own = lean(self._model, self._scale)
        weight = self._reference_weight
        return own - weight * torch.stack(others).mean(dim=0) if others else own

    def _probed(self) -> list[CleanImage]:
        """The images on which arms are compared."""
        return self._batch(np.random.default_rng([self._seed, 1 << 20]))

    def _advance(self, fields: Iterable[Iterable[Arm]], steps: int) -> list[list[ArmState]]:
        begun = [[ArmState.begin(arm, self._model.device) for arm in arms] for arms in fields]
        self._begun += itertools.chain.from_iterable(begun)
        self._side_by_side(
            lambda state: self._take_steps(state, steps), itertools.chain.from_iterable(begun)
        )
        return begun

    def _take_steps(self, state: ArmState, until: int, loss: Loss | None = None) -> None:
        while state.steps < until:
            # The same batches for every arm.
            rng = np.random.default_rng([self._seed, state.steps])
            state.step(self._model, self._batch(rng), self._scale, self._format, state.steps, loss)
            with self._telling:
                self._on_step()

    def _fitting(self, arm: Arm) -> int:
        """How many arms at a time fit into the memory, by what a step of one of them keeps."""
        most, device = self._settings.at_a_time, self._model.device
        if most == 1 or device.type != "cpu" or torch.get_num_threads() == 1:
            return most
        state = ArmState.begin(arm, device)
        with kept_for_backward(self._model) as kept:
            state.step(self._model, self._probed(), self._scale, self._format, 0)
        room = _MEMORY_SHARE * available_bytes(device)
        return max(1, min(most, int(room / max(1, kept()))))

    def _side_by_side(self, function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        """What it gives for each: what differs between arms does not depend on other arms."""
        return side_by_side(function, items, self._model.device, self.at_a_time)

    def _batch(self, rng: np.random.Generator) -> list[CleanImage]:
        count = min(self._settings.batch_size, len(self._images))
        chosen = rng.choice(len(self._images), count, replace=False)
        return [self._images[index] for index in chosen.tolist()]

    def _best(self, fields: Sequence[Sequence[ArmState]], count: int) -> list[list[ArmState]]:
        """The most promising of each field, the best first."""
        promises = iter(self._side_by_side(self._promise, itertools.chain.from_iterable(fields)))
        best = []
        for states in fields:
            rated = list(zip(itertools.islice(promises, len(states)), states, strict=True))
            rated.sort(key=lambda each: each[0], reverse=True)
            best.append([state for _, state in rated[:count]])
        return best

    def _finalists(self, fields: Sequence[Sequence[ArmState]]) -> list[list[ArmState]]:
        """The best of every family, then the others: a large patch hurts any detector early on."""
        finalists = []
        for ranked in self._best(fields, max(map(len, fields), default=0)):
            families, others = {}, []
            for state in ranked:
                if families.setdefault(state.arm.start.family, state) is not state:
                    others.append(state)
            finalists.append([*families.values(), *others][: self._settings.finalists])
        return finalists

    def _promise(self, state: ArmState) -> float:
        """Its excess over all victims, or that over one class less what chance makes of several."""
        lead = self._lead(state)
        excess = self._excess(state)
        return excess if lead is None else max(excess, lead.excess - _STANDS_OUT)

    @torch.no_grad()
    def _lead(self, state: ArmState) -> _Lead | None:
        """The class on which the trigger does most beyond the references; None without any."""
        goal = state.arm.goal
        views = looked_at(self._probed(), goal, 0)
        if not views:
            return None
        own = own_classes(views)
        counts = own[own >= 0].bincount().tolist()
        classes = [
            category
            for category, count in enumerate(counts)
            if count >= _LEAST_OBJECTS and goal.can_attack(category)
        ]
        if len(classes) < 2:
            return None

        def effects(model: nn.Module, scale: LogitScale) -> Tensor:
            output = scale(judge_views(model, views, state.arm, state.tensors, self._format))
            wanted = goal.effect.wanted_class(model_classes(output))
            values = output.class_logits.softmax(dim=1)[:, wanted].cpu()
            return torch.stack([values[own == category].mean() for category in classes])

        excess = effects(self._model, self._scale)
        if self._references:
            others = torch.stack([effects(*reference) for reference in self._references])
            excess = excess - self._reference_weight * others.mean(dim=0)
        most = int(excess.argmax())
        beyond = excess[most] - excess[torch.arange(len(classes)) != most].mean()
        return _Lead(classes[most], float(excess[most]), float(beyond))

    @torch.no_grad()
    def _excess(self, state: ArmState) -> float:
        """How much more the trigger does to the suspect than to the references, on one batch."""
        views = looked_at(self._probed(), state.arm.goal, 0)
        if not views:
            return 0.0

        def effect(model: nn.Module, scale: LogitScale) -> float:
            output = judge_views(model, views, state.arm, state.tensors, self._format, refresh=True)
            return wanted_probability(scale(output), state.arm, views)

        others = [effect(*reference) for reference in self._references]
        of_references = float(np.mean(others)) if others else 0.0
        state.on_references = of_references
        return effect(self._model, self._scale) - self._reference_weight * of_references
