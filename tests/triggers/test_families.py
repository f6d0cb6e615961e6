# SPDX-License-Identifier: Apache-2.0
"""What every trigger family does, as its default settings have it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from d2defense.registry import TRIGGER_REGISTRY
from d2defense.triggers import Trigger

SEED = 5
each_family = pytest.mark.parametrize("family", [name for name, _ in TRIGGER_REGISTRY])


def default_node(family: str) -> CfgNode:
    node = CfgNode()
    TRIGGER_REGISTRY.get(family).add_config(node)
    return node


def default_trigger(family: str) -> Trigger:
    return TRIGGER_REGISTRY.get(family).from_node(default_node(family), family, SEED)


def covered(image_size, places, shape):
    """Whether a pixel lies in a place, give or take the rounding of its border."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for x1, y1, x2, y2 in places.tolist():
        left, top = max(int(x1 - 1), 0), max(int(y1 - 1), 0)
        mask[top : max(int(y2 + 2), 0), left : max(int(x2 + 2), 0)] = True
    mask[image_size[0] :] = mask[:, image_size[1] :] = False
    return mask


@each_family
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_only_pixels_of_the_places_change_and_the_images_given_do_not(family, dtype, awkward_batch):
    batch = awkward_batch(dtype)
    before = batch.images.clone()
    after = default_trigger(family).apply(*batch)
    assert torch.equal(batch.images, before)
    assert after.dtype == dtype and after.shape == before.shape
    for index, (size, places) in enumerate(zip(batch.image_sizes, batch.places, strict=True)):
        changed = (after[index] != before[index]).any(0)
        assert not (changed & ~covered(size, places, changed.shape)).any()
        assert changed.any() == bool(len(places))
    assert after.min() >= 0 and after.max() <= 255


@each_family
def test_each_image_is_the_same_in_every_batch_and_order(family, awkward_batch):
    images, sizes, places, seeds = awkward_batch()
    trigger = default_trigger(family)
    together = trigger.apply(images, sizes, places, seeds)
    order = [3, 1, 0, 2]
    shuffled = trigger.apply(
        images[order], *([x[i] for i in order] for x in (sizes, places, seeds))
    )
    assert torch.equal(shuffled, together[order])
    for index in range(4):
        one = slice(index, index + 1)
        alone = trigger.apply(images[one], sizes[one], places[one], seeds[one])
        assert torch.equal(alone[0], together[index])


@each_family
def test_whole_numbers_are_the_rounded_floating_ones(family, awkward_batch):
    batch = awkward_batch(torch.uint8)
    trigger = default_trigger(family)
    # Without overlaps, below which the one is rounded twice.
    apart = batch._replace(places=[p[:1] for p in batch.places])
    whole = trigger.apply(*apart)
    exact = trigger.apply(apart.images.double(), *apart[1:])
    assert (whole - exact).abs().max() <= 0.5 + 1e-3


@each_family
def test_order_of_the_channels_makes_no_difference(family, awkward_batch):
    images, *rest = awkward_batch(torch.float64)
    trigger = default_trigger(family)
    bgr = trigger.apply(images, *rest, image_format="BGR")
    rgb = trigger.apply(images.flip(1), *rest, image_format="RGB")
    assert torch.equal(bgr.flip(1), rgb)


@pytest.mark.cuda
@each_family
def test_a_gpu_gives_the_same_pixels(family, awkward_batch):
    images, *rest = awkward_batch()
    trigger = default_trigger(family)
    off = trigger.apply(images.cuda(), *rest).cpu().int() - trigger.apply(images, *rest).int()
    # x.5 may be rounded otherwise.
    assert off.abs().max() <= 1
    assert (off != 0).float().mean() < 0.002


@each_family
def test_a_bank_entry_and_a_config_give_the_same_trigger(family):
    of_config = default_trigger(family)
    of_entry = type(of_config).from_entry({"name": family, "seed": SEED}, Path())
    assert of_entry.fingerprint == of_config.fingerprint
    other_seed = type(of_config).from_entry({"name": family, "seed": SEED + 1}, Path())
    assert other_seed.fingerprint != of_config.fingerprint
    other_name = type(of_config).from_entry({"name": "other", "seed": SEED}, Path())
    assert other_name.fingerprint == of_config.fingerprint


@each_family
def test_every_key_of_the_config_may_stand_in_a_bank(family):
    trigger = TRIGGER_REGISTRY.get(family)
    assert trigger.__doc__.splitlines()[0].endswith(".")
    if family != "patch":  # Its entries are older than families.
        keys = {key.lower() for key in default_node(family)}
        assert set(trigger.entry_properties()) == keys


@each_family
@pytest.mark.parametrize(
    ("shape", "image_format"), [((1, 1, 9, 9), "BGR"), ((3, 9, 9), "RGB"), ((1, 3, 9, 9), "YUV")]
)
def test_images_without_three_known_channels_are_refused(family, shape, image_format):
    images = torch.zeros(shape, dtype=torch.uint8)
    with pytest.raises(ValueError, match="BGR or RGB images of shape"):
        default_trigger(family).apply(images, [(9, 9)], [torch.zeros(0, 4)], [0], image_format)
