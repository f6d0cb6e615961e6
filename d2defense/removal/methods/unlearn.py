# SPDX-License-Identifier: Apache-2.0
"""Ours: fine-tuning on what a search finds, with true labels."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from d2defense.detection import CleanImage, load_clean_images, sample_records
from d2defense.detection.search import (
    Arm,
    ArmState,
    Goal,
    LogitScale,
    all_goals,
    names_of_classes,
    starts,
)
from d2defense.detection.search.targets import easiest_target, toward_any
from d2defense.engine.loader import dataset_records
from d2defense.modeling import number_of_classes
from d2defense.registry import REMOVAL_REGISTRY, TRIGGER_REGISTRY
from d2defense.triggers import Trigger

from ..inputs import background_windows, clean_image, patched, some_of, stamped
from ..patches import PatchAugmentation
from ..self_distillation import SelfDistillation
from ..standstill import standing_still
from .base import FineTune, RemovalMethod

# Images that tell the scale of the checkpoint's logits.
_SCALE_IMAGES = 16
# Of the weight by which a goal is drawn, what it has whatever its searches reach.
_FLOOR = 0.1
# Windows of an image where ghosts are tried: they are few beside all that is judged of it.
_WINDOWS = 6
# Share of the drawn triggers that go over the whole image.
_WHOLE_SHARE = 0.25
# Of what a trigger is to change on an image, what is looked at by itself, at most.
_REGIONS = 24
# Of the searches, those for what was asked for.
_TOLD_SHARE = 0.75
# In GOALS, for the target class of what has none.
_NO_CLASS = "-"


@dataclass(frozen=True)
class TriggeredInput:
    """An image as the detector that is trained sees it.

    Attributes:
        image: a training input, perhaps with a trigger on it; its labels are as they were.
        regions: what that trigger is to change, float (M, 4), XYXY in pixels of the input.
    """

    image: dict[str, Any]
    regions: Tensor = field(default_factory=lambda: torch.zeros(0, 4))


@REMOVAL_REGISTRY.register("unlearn")
class Unlearn(RemovalMethod):
    """Ours: fine-tune on triggers that a search finds meanwhile, and on random patches.

    Of the images of a step some bear a trigger that a search has found in the detector as it is by
    then, others random patches, waves, warps and the like, and all keep their labels: boxes stay
    where objects vanished or changed, and nothing is added where ghosts appeared. Every few steps
    the search takes some: it begins anew with another effect, target class, family or budget, or
    goes on with what it has.
    Beside the labels the checkpoint itself is the teacher: whatever an image bears, the detector
    is to say what the checkpoint says of the image without it, which keeps what it can do where
    images are few; and of what a trigger is to change by itself, since a ghost's place is one among
    hundreds, or none that is proposed. ``docs/removal.md`` has what it rests on.
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.UNLEARN.*``."""
        # Learning rate of `d2defense repair`, as a share of REMOVAL.SOLVER.BASE_LR.
        node.LR_FACTOR = 1 / 3
        # Its steps, as a share of REMOVAL.SOLVER.MAX_ITER: more cost AP where objects vanish.
        node.ITER_FACTOR = 0.6
        # The same where the first of GOALS has a target class: ghosts and wrong classes take more.
        node.TARGETED_ITER_FACTOR = 1.0
        # Share of the images that bear a found trigger.
        node.FOUND_SHARE = 0.35
        # Share of the images that bear random patches, as REMOVAL.PATCH_AUGMENTATION has them.
        node.PATCH_SHARE = 0.25
        # Share of the images that bear a random trigger of a family that is not searched, such as a
        # warp or a wave.
        node.DRAWN_SHARE = 0.2
        # Weight of the self-distillation; 0 for none.
        node.DISTILLATION = 1.0
        # What the regions count in it that a found trigger is to change; 0: no more than others.
        node.REGIONS = 0.3
        # Found triggers that are kept; the oldest goes.
        node.TRIGGERS = 8
        # Steps of the fine-tuning between two searches.
        node.EVERY = 8
        # Steps of a search.
        node.STEPS = 10
        # Images of a search's step.
        node.IMAGES = 8
        # What to search for first and most, such as an earlier scan's "ghost background stop: patch
        # of 40 %": effect, placement, target class ("-" for none) and, after a colon, the budget;
        # without one, all budgets.
        node.GOALS = ()
        # Share of the searches for them that are by any budget: a detector that no longer obeys one
        # obeys the others.
        node.OTHER_BUDGETS = 1 / 3

    @staticmethod
    def change_schedule(cfg: CfgNode, num_images: int) -> None:
        """A lower rate, and fewer steps unless a class is to appear."""
        settings, solver = cfg.REMOVAL.UNLEARN, cfg.SOLVER
        solver.BASE_LR *= settings.LR_FACTOR
        is_targeted = any(map(_has_target, settings.GOALS[:1]))
        share = settings.TARGETED_ITER_FACTOR if is_targeted else settings.ITER_FACTOR
        solver.MAX_ITER = max(1, round(solver.MAX_ITER * share))

    def attach(self, model: nn.Module, fine_tune: FineTune) -> list[HookBase]:
        """Load the checkpoint as a teacher; the hook searches between steps."""
        settings = self.cfg.REMOVAL.UNLEARN
        self._patches = PatchAugmentation.from_config(self.cfg)
        self._distillation = SelfDistillation(self.cfg) if settings.DISTILLATION else None
        self._search = TriggerSearch(self.cfg, model)
        return [self._search]

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's own, and ``loss_distillation``."""
        settings = self.cfg.REMOVAL.UNLEARN
        draws = np.random.random(len(batch))
        seen = [self._shown(image, draw) for image, draw in zip(batch, draws, strict=True)]
        losses, features = model.losses_and_features([each.image for each in seen])
        if self._distillation is None:
            return losses
        # The teacher sees the images as they are: what it says under a trigger must not be learnt.
        regions = [each.regions for each in seen]
        distance = self._distillation.loss(model, batch, features, regions, settings.REGIONS)
        return losses | {"loss_distillation": settings.DISTILLATION * distance}

    def _shown(self, image: dict[str, Any], draw: float) -> TriggeredInput:
        """The image with a found trigger, with patches, or as it is."""
        settings = self.cfg.REMOVAL.UNLEARN
        if draw < settings.FOUND_SHARE:
            return self._search.stamped(image) if self._search.found else TriggeredInput(image)
        if draw < settings.FOUND_SHARE + settings.PATCH_SHARE:
            return TriggeredInput(patched(image, self._patches, self.cfg))
        if draw < settings.FOUND_SHARE + settings.PATCH_SHARE + settings.DRAWN_SHARE:
            return TriggeredInput(self._drawn(image))
        return TriggeredInput(image)

    def _drawn(self, image: dict[str, Any]) -> dict[str, Any]:
        """The image with a random trigger, on some of its objects or over all of it."""
        rng = np.random.default_rng(np.random.randint(2**31))
        families = [family for _, family in TRIGGER_REGISTRY]
        triggers = list(filter(None, (family.drawn(rng) for family in families)))
        clean = clean_image(image, int(rng.integers(2**31)))
        height, width = clean.image.shape[1:]
        places = torch.tensor([[0.0, 0.0, width, height]])
        if len(clean.boxes) and rng.random() >= _WHOLE_SHARE:
            windows = torch.from_numpy(background_windows(self.cfg, image, rng)).float()
            places = some_of(torch.cat([clean.boxes, windows]), rng)
        trigger = triggers[rng.integers(len(triggers))]
        return stamped(image, clean, trigger, places, self.cfg.INPUT.FORMAT)


class TriggerSearch(HookBase):
    """Searches the detector that is trained for triggers, a few steps at a time.

    Args:
        cfg: of the fine-tuning run.
        model: the detector, with the checkpoint's weights.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module) -> None:
        self._cfg, self._model = cfg, model
        self._settings = cfg.REMOVAL.UNLEARN
        dataset = cfg.DATASETS.TRAIN[0]
        known = MetadataCatalog.get(dataset).get("thing_classes", ())
        names = names_of_classes(number_of_classes(cfg), known)
        self._goals = list(all_goals(names, _WINDOWS))
        self._goals = [goal for goal in self._goals if starts(goal.placement)]
        self._images = load_clean_images(sample_records(dataset_records(cfg), 0, 0), cfg)
        # How well the last search for a goal did, 0..1; what was not tried may do best.
        self._reached = np.ones(len(self._goals))
        self._told = [
            (index, start)
            for index, goal in enumerate(self._goals)
            for start in starts(goal.placement)
            if self._is_told(goal, start)
        ]
        self.found: deque[ArmState] = deque(maxlen=self._settings.TRIGGERS)
        """What was found so far, the newest last."""

    def before_train(self) -> None:
        """Called by the trainer: the first triggers, unless a training is resumed that has some."""
        if self.found:
            return
        self._scale = self._measure_scale()
        for number in range(self._settings.TRIGGERS):
            self._begin(np.random.default_rng([self._cfg.REMOVAL.SEED, number]), number)

    def before_step(self) -> None:
        """Called by the trainer: every few steps a trigger anew, or one improved."""
        step = self.trainer.iter
        if step == 0 or step % self._settings.EVERY:
            return
        rng = np.random.default_rng([self._cfg.REMOVAL.SEED, self._settings.TRIGGERS, step])
        if rng.random() < 0.5:
            self._begin(rng, None)
        else:
            self._improve(rng)
        get_event_storage().put_scalar(
            "unlearn/reached", float(np.mean([each.effect for each in self.found]))
        )

    def state_dict(self) -> dict[str, Any]:
        """What a training that is resumed goes on from, in tensors and plain containers."""
        return {
            "scale": (self._scale.foreground, self._scale.objectness),
            "reached": self._reached.tolist(),
            "found": [
                {
                    "goal": self._goals.index(state.arm.goal),
                    "start": starts(state.arm.goal.placement).index(state.arm.start),
                    "tensors": {name: each.detach() for name, each in state.tensors.items()},
                    "optimizer": state.optimizer.state_dict(),
                    "steps": state.steps,
                    "effect": state.effect,
                }
                for state in self.found
            ],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self._scale = LogitScale(*state_dict["scale"])
        self._reached = np.array(state_dict["reached"])
        self.found.clear()
        for known in state_dict["found"]:
            goal = self._goals[known["goal"]]
            arm = Arm(goal, starts(goal.placement)[known["start"]])
            state = ArmState.begin(arm, self._model.device, known["tensors"])
            state.optimizer.load_state_dict(known["optimizer"])
            state.steps, state.effect = known["steps"], known["effect"]
            self.found.append(state)

    def stamped(self, image: dict[str, Any]) -> TriggeredInput:
        """A training input with one of the found triggers on it."""
        state = self.found[np.random.randint(len(self.found))]
        clean = clean_image(image, int(np.random.randint(2**31)))
        rng = np.random.default_rng(clean.seed)
        places = some_of(state.arm.goal.places(clean, clean.seed), rng)
        tensors = {name: tensor.detach().cpu() for name, tensor in state.tensors.items()}
        trigger, image_format = state.arm.start, self._cfg.INPUT.FORMAT
        regions = state.arm.goal.regions(clean, places)
        regions = regions[torch.from_numpy(rng.permutation(len(regions))[:_REGIONS])]
        return TriggeredInput(
            stamped(image, clean, trigger, places, image_format, tensors), regions
        )

    def _begin(self, rng: np.random.Generator, number: int | None) -> None:
        """A trigger for a goal that searches do well at, from a start of its own.

        Args:
            rng: of what is drawn.
            number: of the first ones, which go by what was asked for; None later.
        """
        told = bool(self._told) and (number is not None or rng.random() < _TOLD_SHARE)
        if told:
            number = int(rng.integers(len(self._told))) if number is None else number
            index, start = self._told[number % len(self._told)]
            if rng.random() < self._settings.OTHER_BUDGETS:
                start = self._any_start(index, rng)
        else:
            weights = _FLOOR + self._reached
            index = rng.choice(len(self._goals), p=weights / weights.sum())
            start = self._any_start(index, rng)
        state = ArmState.begin(Arm(self._goals[index], start), self._model.device)
        if rng.random() < 0.5:
            generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
            with torch.no_grad():
                for name, (low, high) in state.arm.start.ranges().items():
                    tensor = state.tensors[name]
                    drawn = torch.rand(tensor.shape, generator=generator)
                    tensor.copy_(low + (high - low) * drawn)
        if told and state.arm.goal.target_class is not None:
            self._aim(state, rng)
        self._advance(state, rng)

    def _any_start(self, index: int, rng: np.random.Generator) -> Trigger:
        triggers = starts(self._goals[index].placement)
        return triggers[rng.integers(len(triggers))]

    def _aim(self, state: ArmState, rng: np.random.Generator) -> None:
        """Some steps toward whichever target class is the easiest, which then is the goal's.

        A detector that no longer sees ghosts of the class that was found sees others.
        """
        goals = {
            goal.target_class: goal for goal in self._goals if goal.kind == state.arm.goal.kind
        }
        image_format = self._cfg.INPUT.FORMAT
        loss = toward_any(state.arm.goal, goals)
        with standing_still(self._model):
            for _ in range(self._settings.STEPS):
                batch = self._batch(rng)
                state.step(self._model, batch, self._scale, image_format, 0, loss)
            target = easiest_target(
                self._model, self._batch(rng), state, self._scale, image_format, goals
            )
        if target is not None:
            state.arm = Arm(goals[target], state.arm.start)

    def _improve(self, rng: np.random.Generator) -> None:
        """Go on with the trigger that the detector obeys most, which then lives longer."""
        pool = range(len(self.found))
        if self._told and rng.random() < _TOLD_SHARE:
            told = {self._goals[index].kind for index, _ in self._told}
            pool = [each for each in pool if self.found[each].arm.goal.kind in told] or pool
        strongest = max(pool, key=lambda index: self.found[index].effect)
        state = self.found[strongest]
        del self.found[strongest]
        self._advance(state, rng)

    def _advance(self, state: ArmState, rng: np.random.Generator) -> None:
        """Some steps of a search, on the detector as it is by now."""
        with standing_still(self._model):
            for _ in range(self._settings.STEPS):
                state.step(self._model, self._batch(rng), self._scale, self._cfg.INPUT.FORMAT, 0)
        self._reached[self._goals.index(state.arm.goal)] = state.effect
        self.found.append(state)

    def _batch(self, rng: np.random.Generator) -> list[CleanImage]:
        count = min(self._settings.IMAGES, len(self._images))
        chosen = rng.choice(len(self._images), count, replace=False)
        return [self._images[index] for index in chosen.tolist()]

    def _measure_scale(self) -> LogitScale:
        with standing_still(self._model):
            try:
                return LogitScale.of(self._model, self._images[:_SCALE_IMAGES])
            except ValueError:
                # It finds nothing to speak of: its logits are taken as they are.
                return LogitScale((0.0, 1.0), (0.0, 1.0))

    def _is_told(self, goal: Goal, start: Trigger) -> bool:
        what = goal.effect.name, goal.placement, goal.effect.cfg.ATTACK.TARGET_CLASS
        return not {goal_entry(*what), goal_entry(*what, start.name)}.isdisjoint(
            self._settings.GOALS
        )


def goal_entry(effect: str, placement: str, target_class: str | None, budget: str = "") -> str:
    """An entry of ``REMOVAL.UNLEARN.GOALS``; without a budget it means all of them."""
    goal = f"{effect} {placement} {target_class or _NO_CLASS}"
    return f"{goal}: {budget}" if budget else goal


def _has_target(entry: str) -> bool:
    return not entry.partition(":")[0].rstrip().endswith(f" {_NO_CLASS}")
