# SPDX-License-Identifier: Apache-2.0
"""Clean labelled images, as the detector will see them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from torch import Tensor

from d2defense.attacks import image_seed
from d2defense.modeling import number_of_classes
from d2defense.statistics import annotated_objects, at_input_size, bears_trigger

from .classes import UNKNOWN


@dataclass(frozen=True)
class CleanImage:
    """One image at the network's input size, with its objects.

    Attributes:
        file_name: where it was read from.
        image: Tensor of shape (3, H, W), values 0..255, channels in ``INPUT.FORMAT``.
        boxes: Tensor of shape (M, 4), XYXY in pixels of ``image``; crowds left out.
        classes: int64 Tensor of shape (M,): indices of the detector's classes, -1 where the
            object's class is none that it is known to have.
        seed: for the random patterns of triggers.
    """

    file_name: str
    image: Tensor
    boxes: Tensor
    classes: Tensor
    seed: int


class CleanImages(Sequence[CleanImage]):
    """Images that are read when they are asked for, so that only those at work take memory.

    Args:
        records: Detectron2's standard dataset dicts with annotations.
        cfg: the detector's configuration (``INPUT.*_TEST``, ``INPUT.FORMAT``).
        class_indices: index in the detector of each of the dataset's classes, -1 for none; None
            if they are the same.
    """

    def __init__(
        self,
        records: list[dict[str, Any]],
        cfg: CfgNode,
        class_indices: Sequence[int] | None = None,
    ) -> None:
        cfg = cfg.clone()
        cfg.defrost()
        # Only pixels are read, and the mapper would ask the training data for its keypoints.
        cfg.MODEL.KEYPOINT_ON = False
        self._mapper = DatasetMapper(cfg, is_train=False)
        self._records = records
        self._class_indices = class_indices
        self._num_classes = number_of_classes(cfg)
        self._test_sizes = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> CleanImage: ...

    @overload
    def __getitem__(self, index: slice) -> list[CleanImage]: ...

    def __getitem__(self, index: int | slice) -> CleanImage | list[CleanImage]:
        """Read one image, or those of a slice, and resize them as stock inference does."""
        if isinstance(index, slice):
            return [self._load(record) for record in self._records[index]]
        return self._load(self._records[index])

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Height and width of each image at the network's input, without reading the images."""
        return [self._shape(record) for record in self._records]

    def _shape(self, record: dict[str, Any]) -> tuple[int, int]:
        short, long = self._test_sizes
        height, width = record["height"], record["width"]
        if not short:
            return height, width
        return T.ResizeShortestEdge.get_output_shape(height, width, short, long)

    @property
    def num_objects(self) -> int:
        """Objects on all images that can bear a trigger."""
        return sum(self.object_counts)

    @property
    def object_counts(self) -> list[int]:
        """Objects on each image that can bear a trigger."""
        return [sum(map(bears_trigger, record["annotations"])) for record in self._records]

    @property
    def object_classes(self) -> list[list[int]]:
        """Of each image, the classes of its objects, without reading the images."""
        return [self._classes(annotated_objects(r)[1].tolist()).tolist() for r in self._records]

    def _load(self, record: dict[str, Any]) -> CleanImage:
        boxes, categories = annotated_objects(record)
        mapped = self._mapper(record)
        return CleanImage(
            file_name=record["file_name"],
            image=mapped["image"],
            boxes=at_input_size(boxes, mapped),
            classes=self._classes(categories.tolist()),
            seed=image_seed(record["file_name"]),
        )

    def _classes(self, categories: Iterable[int]) -> Tensor:
        known = self._class_indices
        if known is not None:
            categories = (known[c] if c < len(known) else UNKNOWN for c in categories)
        return torch.tensor(
            [index if 0 <= index < self._num_classes else UNKNOWN for index in categories],
            dtype=torch.int64,
        )


def load_clean_images(
    records: list[dict[str, Any]], cfg: CfgNode, class_indices: Sequence[int] | None = None
) -> CleanImages:
    """Images of records as stock inference of ``cfg`` sees them; see :class:`CleanImages`."""
    return CleanImages(records, cfg, class_indices)


def input_shapes(images: Sequence[CleanImage]) -> list[tuple[int, int]]:
    """Height and width of each image; lazy images are not read for it."""
    if isinstance(images, CleanImages):
        return images.shapes
    return [tuple(image.image.shape[1:]) for image in images]


def max_objects(images: Sequence[CleanImage]) -> int:
    """The largest number of objects on one image; lazy images are not read for it."""
    if isinstance(images, CleanImages):
        return max(images.object_counts)
    return max(len(image.boxes) for image in images)


def object_classes(images: Sequence[CleanImage]) -> list[list[int]]:
    """Of each image, the classes of its objects; lazy images are not read for it."""
    if isinstance(images, CleanImages):
        return images.object_classes
    return [image.classes.tolist() for image in images]


def objects_of_classes(images: Sequence[CleanImage]) -> Counter[int]:
    """How many objects of each class all images show; lazy images are not read for it."""
    return Counter(itertools.chain.from_iterable(object_classes(images)))


def sample_records(
    records: list[dict[str, Any]], max_images: int, seed: int
) -> list[dict[str, Any]]:
    """At most ``max_images`` of the records that show an object, drawn by seed, in dataset order.

    The draw is stratified: each image taken is one that shows a class which the fewest images
    taken so far show, so that rare classes are on as many images as the data allow.

    Args:
        records: Detectron2's standard dataset dicts.
        max_images: 0 for all of them.
        seed: of the draw.
    """
    records = [r for r in records if any(bears_trigger(a) for a in r.get("annotations", ()))]
    if not max_images or len(records) <= max_images:
        return records
    shown = [
        frozenset(a.get("category_id", 0) for a in record["annotations"] if bears_trigger(a))
        for record in records
    ]
    rng = np.random.default_rng(seed)
    classes = sorted(frozenset().union(*shown))
    classes = [classes[index] for index in rng.permutation(len(classes))]
    # Stacks of the images that show a class, in an order drawn anew for each class.
    stacks = {
        name: [index for index in rng.permutation(len(records)).tolist() if name in shown[index]]
        for name in classes
    }
    images_of = dict.fromkeys(classes, 0)
    taken: set[int] = set()
    while len(taken) < max_images:
        rarest = min((name for name in classes if stacks[name]), key=images_of.__getitem__)
        index = stacks[rarest].pop()
        if index not in taken:
            taken.add(index)
            for name in shown[index]:
                images_of[name] += 1
    return [records[index] for index in sorted(taken)]
