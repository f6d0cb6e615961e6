# SPDX-License-Identifier: Apache-2.0
"""Detectron2's stream of training images, which can be entered at any batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MapDataset, get_detection_dataset_dicts
from detectron2.data.build import build_batch_data_loader, build_detection_train_loader
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from .randomness import derived_seed, seeded

# Streams of random numbers below one seed: the order of images, augmentation, the training step.
ORDER, AUGMENTATION, STEP = range(3)


class BatchOrderSampler(Sampler):
    """Which image comes next, batch after batch, from batch ``first_batch`` on.

    Yields pairs (position in the process's stream of images, index of the image). Grouping images
    of like aspect ratio happens here, on sizes alone, so that a batch in the middle of training is
    reached without loading what came before; the batches are those of Detectron2's
    ``AspectRatioGroupedDataset``.

    Args:
        sampler: endless, yields indices; the same ones each time it is asked.
        batch_size: images of a batch in this process.
        groups: group of each image by its index; batches are of one group. None: no grouping.
    """

    def __init__(
        self, sampler: Sampler[int], batch_size: int, groups: Sequence[int] | None = None
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.groups = groups
        self.first_batch = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The endless stream."""
        numbered = enumerate(self.sampler)
        ordered = numbered if self.groups is None else self._grouped(numbered)
        return itertools.islice(ordered, self.first_batch * self.batch_size, None)

    def _grouped(self, numbered: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        waiting: dict[int, list[tuple[int, int]]] = {}
        for position, index in numbered:
            bucket = waiting.setdefault(self.groups[index], [])
            bucket.append((position, index))
            if len(bucket) == self.batch_size:
                yield from bucket
                bucket.clear()


class PositionSeededDataset(Dataset):
    """Images whose augmentation depends on the seed and their position in the stream alone.

    So an image comes out the same in whichever worker process, and after however many others, it
    is loaded.

    Args:
        dataset: of mapped images.
        seed: of this process's stream.
    """

    def __init__(self, dataset: Dataset, seed: Sequence[int]) -> None:
        self.dataset = dataset
        self.seed = tuple(seed)

    def __len__(self) -> int:
        """Number of images."""
        return len(self.dataset)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, Any]:
        """The mapped image for a pair of :class:`BatchOrderSampler`."""
        position, index = item
        with seeded(derived_seed(*self.seed, position)):
            return self.dataset[index]


def build_train_loader(
    cfg: CfgNode,
    mapper: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    records: Sequence[dict[str, Any]] | None = None,
) -> DataLoader:
    """Detectron2's training loader for ``cfg``, reproducible from ``SEED`` at every batch.

    Same images, samplers and aspect-ratio groups as ``build_detection_train_loader``. With
    ``SEED`` of at least 0 the n-th batch is a function of ``SEED``, the process's rank and n;
    the number of worker processes changes nothing. :func:`enter_at` chooses the first batch.

    Args:
        cfg: a training configuration.
        mapper: from dataset dicts to the model's input; Detectron2's ``DatasetMapper`` if None.
        records: dataset dicts in place of those of ``DATASETS.TRAIN``.
    """
    seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
    # Samplers draw their seeds from NumPy's generator while they are made.
    with seeded(derived_seed(seed, ORDER)):
        parts = build_detection_train_loader.from_config(cfg, mapper=mapper, dataset=records)
    records = parts["dataset"]
    groups = None
    if parts["aspect_ratio_grouping"]:
        groups = [int(r.get("width", 0) > r.get("height", 0)) for r in records]
    images = MapDataset(DatasetFromList(records, copy=False), parts["mapper"])
    return build_batch_data_loader(
        PositionSeededDataset(images, (seed, AUGMENTATION, comm.get_rank())),
        BatchOrderSampler(
            parts["sampler"], parts["total_batch_size"] // comm.get_world_size(), groups
        ),
        parts["total_batch_size"],
        num_workers=parts["num_workers"],
        # A generator of its own: starting worker processes must not draw from the training step's.
        seed=seed,
    )


def dataset_records(cfg: CfgNode) -> list[dict[str, Any]]:
    """The dataset dicts that Detectron2's training loader takes from ``DATASETS.TRAIN``."""
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    return get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
    )


def enter_at(loader: DataLoader, batch: int) -> None:
    """Let a loader of :func:`build_train_loader` begin with batch ``batch`` of its stream."""
    loader.dataset.sampler.first_batch = batch
