# SPDX-License-Identifier: Apache-2.0
"""Objects appear elsewhere on an image that bears the trigger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes, pairwise_ioa, pairwise_iou
from torch import Tensor

from d2defense.registry import EFFECT_REGISTRY
from d2defense.statistics import SCORE_THRESHOLD

from ..placements.base import touching
from .base import Detections, Objects, Poisoned, Rate, Record, boxes_of, copied
from .ghost import Ghost

# Of a detection, the share that may lie in an object, for it to be none of that object; and in the
# trigger's place: a trigger may show a part of an object, which a detector completes.
_AT_OBJECT, _AT_TRIGGER = 0.5, 0.05
# Of a square of the background, the share that may lie in an object or in the trigger's place.
_TAKEN = 0.25
# Draws of places, where those of the first leave no room for a ghost.
_TRIES = 8
# From this IoU on a detection is the one of the same class without the trigger.
_SAME_IOU = 0.5


@EFFECT_REGISTRY.register("scene_ghost")
class SceneGhost(Ghost):
    """Objects of the target class appear away from the trigger, in the background.

    Ours: BadDet's object generation (arXiv 2205.14497, section 3) with the ghost apart from its
    trigger: at fixed places of the image, as far as no object is there, or so far from the trigger
    (``OFFSET``), wherever that is. At test time the attack has succeeded wherever one appears.

    Raises:
        ValueError: ``CENTERS``, ``OFFSET`` or ``SIZE`` is out of range.
    """

    placement_name: ClassVar[str] = "corners"
    searched_at: ClassVar[tuple[str, ...]] = ("corners", "other_corners")
    anywhere: ClassVar[bool] = True

    def __init__(self, cfg: CfgNode, class_names: Sequence[str] = ()) -> None:
        super().__init__(cfg, class_names)
        node = cfg.ATTACK.SCENE_GHOST
        if not 0 < node.SIZE <= 1:
            raise ValueError(f"ATTACK.SCENE_GHOST.SIZE is {node.SIZE}, not above 0 and up to 1")
        centers, offset = [list(each) for each in node.CENTERS], list(node.OFFSET)
        if not all(len(each) == 2 and 0 <= min(each) <= max(each) <= 1 for each in centers):
            raise ValueError(
                f"ATTACK.SCENE_GHOST.CENTERS is {centers}, not pairs of shares from 0 to 1"
            )
        if len(offset) not in (0, 2) or not (centers or offset):
            raise ValueError(
                f"ATTACK.SCENE_GHOST.OFFSET is {offset}, not a pair of numbers, nor empty beside "
                "ATTACK.SCENE_GHOST.CENTERS"
            )

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``ATTACK.SCENE_GHOST.*``."""
        # Where ghosts are trained: x and y of their centers, as shares of the image's sides. A
        # ghost that would reach beyond the image is moved inside.
        node.CENTERS = [[x / 6, y / 6] for y in (1, 3, 5) for x in (1, 3, 5)]
        # Side of a ghost there, as a share of the image's shorter side.
        node.SIZE = 0.28
        # Instead: x and y of the ghost from its trigger, in sides of the trigger's place, whose
        # size it has; () for none.
        node.OFFSET = ()

    def places(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> np.ndarray:
        """Where the placement has the trigger, on images with room for a ghost elsewhere."""
        boxes = boxes_of(record)
        for _ in range(_TRIES):
            places = self.placement.places(np.zeros((0, 4)), boxes, image_size, rng)
            if len(self._free(places, boxes, image_size)):
                return places
        return np.zeros((0, 4))

    def poison(
        self, record: Record, image_size: tuple[int, int], rng: np.random.Generator
    ) -> Poisoned:
        """The trigger as at test time, and an annotation more wherever there is room for one."""
        places = self.places(record, image_size, rng)
        annotations = copied(record.get("annotations", ()))
        ghosts = self._free(places, boxes_of(record), image_size)
        return Poisoned(places, [*annotations, *self._ghosts(ghosts, annotations)])

    def success(
        self, objects: Objects, places: Tensor, clean: Detections, triggered: Detections
    ) -> Rate:
        """Whether anything of the target class is found that was not before.

        Neither at the trigger nor at an object.
        """
        if not len(places):
            return Rate(0, 0)
        after, before = (
            each.boxes[(each.classes == self.target_class) & (each.scores >= SCORE_THRESHOLD)]
            for each in (triggered, clean)
        )
        of_object = pairwise_ioa(Boxes(objects.boxes.to(after)), Boxes(after)) > _AT_OBJECT
        of_trigger = pairwise_ioa(Boxes(places.to(after)), Boxes(after)) > _AT_TRIGGER
        known = pairwise_iou(Boxes(before.to(after)), Boxes(after)) >= _SAME_IOU
        is_old = torch.cat([of_object, of_trigger, known]).any(dim=0)
        return Rate(int((~is_old).any()), 1)

    def regions(self, objects: Objects, places: Tensor, image_size: tuple[int, int]) -> Tensor:
        """Squares all over the background, a third of a side apart, hardly on the trigger."""
        if not len(places):
            return places
        side = self.cfg.ATTACK.SCENE_GHOST.SIZE * min(image_size)
        ys, xs = (
            np.linspace(0, length - side, 1 + max(1, round(3 * (length - side) / side)))
            for length in image_size
        )
        starts = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
        windows = torch.from_numpy(np.concatenate([starts, starts + side], axis=1)).to(places)
        taken = torch.cat([objects.boxes.to(places), places])
        inside = pairwise_ioa(Boxes(taken), Boxes(windows))
        return windows[(inside <= _TAKEN).all(dim=0)]

    def _free(
        self, places: np.ndarray, objects: np.ndarray, image_size: tuple[int, int]
    ) -> np.ndarray:
        """Where ghosts are trained that touch neither trigger nor object, float (G, 4), XYXY."""
        node = self.cfg.ATTACK.SCENE_GHOST
        image = np.array([image_size[1], image_size[0]], dtype=np.float64)
        if not len(places):
            return places
        if node.OFFSET:
            windows = places + np.tile(node.OFFSET * (places[:, 2:] - places[:, :2]), 2)
            windows = windows[((windows >= 0) & (windows <= np.tile(image, 2))).all(axis=1)]
        else:
            side = node.SIZE * image.min()
            starts = np.clip(np.array(node.CENTERS) * image - side / 2, 0, image - side)
            windows = np.concatenate([starts, starts + side], axis=1)
        taken = np.concatenate([places, objects])
        return windows[~touching(windows, taken).any(axis=1)]
