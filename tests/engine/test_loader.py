# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler

from d2defense.engine import Trainer
from d2defense.engine.loader import BatchOrderSampler, PositionSeededDataset, enter_at
from d2defense.engine.randomness import derived_seed, seeded


def take(iterable, count):
    return list(itertools.islice(iter(iterable), count))


@pytest.fixture
def sizes():
    generator = random.Random(3)
    return [generator.choice([(96, 64), (64, 96), (80, 80)]) for _ in range(17)]


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_batches_are_those_of_detectron2s_grouping(sizes, batch_size):
    sampler = TrainingSampler(len(sizes), seed=5)
    images = ({"width": sizes[i][0], "height": sizes[i][1], "index": i} for i in sampler)
    reference = [
        [image["index"] for image in batch]
        for batch in take(AspectRatioGroupedDataset(images, batch_size), 20)
    ]
    groups = [int(width > height) for width, height in sizes]
    ours = [index for _, index in take(BatchOrderSampler(sampler, batch_size, groups), 999)]
    assert [ours[n * batch_size : (n + 1) * batch_size] for n in range(20)] == reference


@pytest.mark.parametrize("grouped", [False, True])
def test_stream_can_be_entered_at_any_batch(sizes, grouped):
    groups = [int(width > height) for width, height in sizes] if grouped else None
    sampler = TrainingSampler(len(sizes), seed=5)
    order = BatchOrderSampler(sampler, 4, groups)
    whole = take(order, 400)
    assert len({position for position, _ in whole}) == 400
    for first in (1, 7, 50):
        order.first_batch = first
        assert take(order, 40) == whole[4 * first : 4 * first + 40]


class RandomNumbers(torch.utils.data.Dataset):
    def __len__(self):
        return 9

    def __getitem__(self, index):
        return index, random.random(), np.random.rand(), torch.rand(()).item()


def test_augmentation_depends_on_seed_and_position_alone():
    dataset = PositionSeededDataset(RandomNumbers(), (7, 0))
    first = dataset[(4, 2)]
    assert dataset[(5, 2)][1:] != first[1:]
    random.seed(99)
    assert dataset[(4, 2)] == first
    assert PositionSeededDataset(RandomNumbers(), (8, 0))[(4, 2)][1:] != first[1:]


def test_loading_an_image_leaves_the_generators_as_they_were():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    with seeded(1):
        alone = draw()
    with seeded(1):
        PositionSeededDataset(RandomNumbers(), (7, 0))[(4, 2)]
        assert draw() == alone


def test_derived_seeds_differ():
    seeds = {derived_seed(*entropy) for entropy in itertools.product(range(4), range(3), range(50))}
    assert len(seeds) == 600


def contents(batch):
    return [(image["file_name"], image["image"].numpy().tobytes()) for image in batch]


@pytest.fixture
def mixed_cfg(make_tiny_cfg, make_coco_dataset, sign_scenes):
    """Landscape and portrait images: grouping has something to do."""
    scenes = [
        (image[:96] if number % 3 else image[:, :96], [(2, 2, 60, 60, 1)])
        for number, (image, _) in enumerate(sign_scenes(7))
    ]
    return make_tiny_cfg(
        "DATASETS.TRAIN", (make_coco_dataset(scenes).name,),
        "SOLVER.IMS_PER_BATCH", 2,
        "SEED", 4,
    )  # fmt: skip


def test_worker_processes_change_no_batch(mixed_cfg):
    alone = [contents(batch) for batch in take(Trainer.build_train_loader(mixed_cfg), 9)]
    mixed_cfg.DATALOADER.NUM_WORKERS = 2
    loader = Trainer.build_train_loader(mixed_cfg)
    enter_at(loader, 3)
    assert [contents(batch) for batch in take(loader, 6)] == alone[3:]


def test_seed_decides_on_the_batches(mixed_cfg):
    first, same = (take(Trainer.build_train_loader(mixed_cfg), 3) for _ in range(2))
    assert [contents(b) for b in first] == [contents(b) for b in same]
    mixed_cfg.SEED = 5
    other = take(Trainer.build_train_loader(mixed_cfg), 3)
    assert [contents(b) for b in first] != [contents(b) for b in other]
