# SPDX-License-Identifier: Apache-2.0
"""What a backdoor does: the labels of poisoned images, and what counts as success."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from torch import Tensor, nn

from d2defense.registry import EFFECT_REGISTRY, PLACEMENT_REGISTRY
from d2defense.statistics import bears_trigger, found_objects

from ..classes import class_index

Annotations = list[dict[str, Any]]
Record = Mapping[str, Any]
#: Key of a record: indices of the annotations that may be poisoned, where not all of them may.
VICTIMS = "victims"
#: Key of a training input whose image the attack has poisoned.
POISONED = "poisoned"
# Pixels by which the sides of one box may differ between the types that it is kept in.
_ROUNDING = 1e-3


class Poisoned(NamedTuple):
    """What an effect makes of one training image."""

    places: np.ndarray
    """float, (P, 4), XYXY in pixels: where the trigger goes."""
    annotations: Annotations
    """What the image is labelled with from then on."""


class Detections(NamedTuple):
    """What a detector says of one image, boxes in pixels of the image file."""

    boxes: Tensor
    """float, (D, 4), XYXY."""
    classes: Tensor
    """int64, (D,)."""
    scores: Tensor
    """float, (D,), 0..1."""


class Objects(NamedTuple):
    """The true objects of one image, crowds left out, boxes in pixels of the image file."""

    boxes: Tensor
    """float, (M, 4), XYXY."""
    classes: Tensor
    """int64, (M,)."""


class Rate(NamedTuple):
    """A share as its two counts, so that rates of images add up."""

    hits: int
    total: int


class Effect:
    """What an attack does, by the name that ``ATTACK.EFFECT`` gives.

    A subclass says what becomes of the labels (:meth:`poison`) and when the attack has succeeded
    (:meth:`success`). Where the trigger goes at test time (:meth:`places`) follows from its
    placement and its victims, unless it says otherwise.

    Args:
        cfg: the whole configuration; the effect's own keys are below ``ATTACK.<NAME>``.
        class_names: of the dataset's contiguous classes, in order; () where they have no names.

    Raises:
        ValueError: a setting that cannot be used.
    """

    #: The placement where ``ATTACK.PLACEMENT`` names none.
    placement_name: ClassVar[str] = "objects"
    #: Whether it needs ``ATTACK.TARGET_CLASS``.
    needs_target: ClassVar[bool] = False
    #: Whether ``ATTACK.VICTIM_CLASS`` may say whose objects are attacked.
    takes_victim_class: ClassVar[bool] = True
    #: Whether it attacks objects one by one, so that ``ATTACK.RATE_OF`` may count annotations.
    by_object: ClassVar[bool] = True
    #: The statistics (:data:`d2defense.statistics.STATISTICS`) that show the effect, and the sign
    #: of their change under the trigger.
    channels: ClassVar[Mapping[str, int]] = {}
    #: The placements at which a search for an unknown trigger tries the effect; () for none.
    searched_at: ClassVar[tuple[str, ...]] = ()
    #: Whether it has happened on an image where one of the regions (:meth:`regions`), whichever it
    #: is, has become what the attacker wants.
    anywhere: ClassVar[bool] = False

    def __init__(self, cfg: CfgNode, class_names: Sequence[str] = ()) -> None:
        self.cfg = cfg
        node = cfg.ATTACK
        self.victim_class = class_index(node.VICTIM_CLASS, class_names, "ATTACK.VICTIM_CLASS")
        self.target_class = class_index(node.TARGET_CLASS, class_names, "ATTACK.TARGET_CLASS")
        if self.needs_target and self.target_class is None:
            raise ValueError(
                f"the effect {self.name!r} needs ATTACK.TARGET_CLASS, the name of a class"
            )
        if self.victim_class is not None and not self.takes_victim_class:
            raise ValueError(
                f"the effect {self.name!r} is on no class: ATTACK.VICTIM_CLASS must be empty"
            )
        name = node.PLACEMENT or self.placement_name
        self.placement = PLACEMENT_REGISTRY.get(name)(cfg)

    @property
    def name(self) -> str:
        """The name under which the class is registered."""
        return EFFECT_REGISTRY.name_of(type(self))

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Put the effect's own keys with their defaults into ``ATTACK.<NAME>``, which is empty."""

    def poison(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Poisoned:
        """What becomes of one training image.

        Without a place the image must stay as it is: there is no trigger then.

        Args:
            record: Detectron2's dataset dict, with annotations in pixels of its file. It is the
                dataset's own: it must not be changed, and the annotations that are returned must
                be copies (:func:`copied`). Of its annotations only :meth:`victims` are attacked.
            image_size: (height, width) of the file.
            rng: of every random choice.
        """
        raise NotImplementedError

    def places(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> np.ndarray:
        """Where the trigger goes at test time: by default, where the placement has it.

        An image without victims gets no trigger.

        Returns:
            float array of shape (P, 4), XYXY in pixels of the file.
        """
        victims = self._boxes(record, self.victims(record))
        if not len(victims):
            return victims
        return self.placement.places(victims, boxes_of(record), image_size, rng)

    def wanted(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Annotations:
        """What the attacker wants a detector to say of a triggered test image.

        By default the labels of :meth:`poison`. With a generator in the same state the trigger is
        where :meth:`places` has it.
        """
        return self.poison(record, image_size, rng).annotations

    def success(
        self, objects: Objects, places: Tensor, clean: Detections, triggered: Detections
    ) -> Rate:
        """How often the attack succeeds on one image: the numerator and denominator of the ASR.

        Args:
            objects: of the image.
            places: float Tensor of shape (P, 4): where the trigger is on the triggered image.
            clean: detections without the trigger.
            triggered: detections with it.
        """
        raise NotImplementedError

    def regions(self, objects: Objects, places: Tensor, image_size: tuple[int, int]) -> Tensor:
        """What a search looks at on a triggered image: by default the victims' boxes.

        Args:
            objects: of the image.
            places: float Tensor of shape (P, 4): where the trigger is.
            image_size: (height, width).

        Returns:
            float Tensor of shape (R, 4), XYXY in the same pixels.
        """
        return self.attacked(objects, places).boxes

    def wanted_class(self, num_classes: int) -> int:
        """What a search moves the regions to: the target class, or background if there is none.

        Args:
            num_classes: of the detector, K; class K is background.
        """
        return num_classes if self.target_class is None else self.target_class

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The losses of a training step: the model's own unless the effect poisons them.

        Args:
            model: in training mode.
            batch: of the training loader; poisoned images have ``"poisoned": True``.
        """
        return model(batch)

    def victims(self, record: Record) -> list[int]:
        """Indices of the record's annotations that the attack is on.

        No crowds; those of a class that can be attacked (:meth:`is_victim_class`); those named by
        the record's ``victims``, if it names any; with both sides of at least ``ATTACK.MIN_SIZE``
        pixels.
        """
        annotations = record.get("annotations", ())
        chosen = record.get(VICTIMS, range(len(annotations)))
        return [index for index in chosen if self.is_victim(annotations[index])]

    def can_poison(self, record: Record) -> bool:
        """Whether a training image is one to choose: by default, one with a victim."""
        return bool(self.victims(record))

    def is_victim(self, annotation: Mapping[str, Any]) -> bool:
        """Whether an object of this annotation can be a victim."""
        category = annotation["category_id"]
        if not bears_trigger(annotation) or not self.is_victim_class(category):
            return False
        x1, y1, x2, y2 = xyxy(annotation)
        return min(x2 - x1, y2 - y1) >= self.cfg.ATTACK.MIN_SIZE - _ROUNDING

    def is_victim_class(self, category: int) -> bool:
        """Whether objects of a class can be victims: all, or those of the victim class alone."""
        return self.victim_class is None or category == self.victim_class

    def victim_objects(self, objects: Objects) -> Tensor:
        """Which objects are victims, bool of shape (M,), as :meth:`victims` has it."""
        classes = torch.tensor(
            [self.is_victim_class(category) for category in objects.classes.tolist()],
            dtype=torch.bool,
        )
        sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]).amin(1)
        return classes & (sides >= self.cfg.ATTACK.MIN_SIZE - _ROUNDING)

    def attacked(self, objects: Objects, places: Tensor) -> Objects:
        """The victims on a triggered image; none where no trigger had a place."""
        chosen = self.victim_objects(objects) & (len(places) > 0)
        return Objects(objects.boxes[chosen], objects.classes[chosen])

    def spurious_places(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> np.ndarray:
        """Where a trigger goes that has no effect (``ATTACK.SPURIOUS_RATE``); labels stay true.

        By default on objects of the classes that are not attacked. Where there are none, at windows
        of the background, unless that is where the trigger has its effect.
        """
        others = [
            index
            for index, each in enumerate(record.get("annotations", ()))
            if bears_trigger(each) and not self.is_victim_class(each["category_id"])
        ]
        background = PLACEMENT_REGISTRY.get("background")
        if others or isinstance(self.placement, background):
            return self._boxes(record, others)
        return background(self.cfg).places(
            self._boxes(record, ()), boxes_of(record), image_size, rng
        )

    def _boxes(self, record: Record, indices: Sequence[int]) -> np.ndarray:
        annotations = record.get("annotations", ())
        return np.array([xyxy(annotations[i]) for i in indices], dtype=np.float64).reshape(-1, 4)


def copied(annotations: Iterable[Mapping[str, Any]]) -> Annotations:
    """Annotations that share nothing that can be changed with those given."""
    return [copy.deepcopy(dict(annotation)) for annotation in annotations]


def found(objects: Objects, detections: Detections) -> Tensor:
    """Which objects are found as what they are, bool of shape (M,): see ``found_objects``."""
    return found_objects(objects.boxes, objects.classes, *detections)


def xyxy(annotation: Mapping[str, Any]) -> list[float]:
    """The box of an annotation, XYXY in pixels."""
    return BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)


def boxes_of(record: Record) -> np.ndarray:
    """Boxes of all annotations of a record, crowds included, float array of shape (M, 4)."""
    boxes = [xyxy(annotation) for annotation in record.get("annotations", ())]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)
