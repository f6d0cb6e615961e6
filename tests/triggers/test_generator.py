# SPDX-License-Identifier: Apache-2.0
"""Generated triggers, against the network spelt out in NumPy, and files that are no network."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch.autograd import gradcheck

from d2defense.triggers.families.generator import (
    Generator,
    encode,
    random_encoder,
    read_encoder,
    save_encoder,
)


def layers(*channels: int, kernel: int = 3, scale: float = 0.4) -> dict[str, torch.Tensor]:
    """An encoder of so many channels from layer to layer."""
    generator = torch.Generator().manual_seed(len(channels))
    encoder = {}
    for index, (before, after) in enumerate(itertools.pairwise(channels)):
        shape = (after, before, kernel, kernel)
        encoder[f"layers.{index}.weight"] = scale * torch.randn(shape, generator=generator)
        encoder[f"layers.{index}.bias"] = scale * torch.randn(after, generator=generator)
    return encoder


def content(encoder: dict[str, torch.Tensor]) -> bytes:
    return safetensors.torch.save(encoder)


def half(encoder: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.half() for name, value in encoder.items()}


def network(pixels: np.ndarray, encoder: dict[str, torch.Tensor]) -> np.ndarray:
    """What is added to (h, w, 3), as a share of the bound."""
    values = 2 * pixels - 1
    rows, columns = values.shape[:2]
    for index in range(len(encoder) // 2):
        weight = encoder[f"layers.{index}.weight"].double().numpy()
        bias = encoder[f"layers.{index}.bias"].double().numpy()
        if index:
            values = np.maximum(values, 0)
        size = weight.shape[-1]
        rim = (size // 2, size // 2)
        padded = np.pad(values, (rim, rim, (0, 0)), mode="edge")
        values = bias + sum(
            padded[y : y + rows, x : x + columns] @ weight[:, :, y, x].T
            for y in range(size)
            for x in range(size)
        )
    return np.tanh(values)


TRIGGERS = [
    Generator("random", seed=3),
    Generator("one layer", content=content(layers(3, 3, kernel=5)), bound=0.3),
    Generator("deep", content=content(half(layers(3, 7, 2, 9, 3))), bound=1.0),
    Generator("pixels", content=content(layers(3, 128, 3, kernel=1))),
]
each_trigger = pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda trigger: trigger.name)


@each_trigger
@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_what_is_added_is_what_the_network_makes_of_the_pixels(
    trigger, image_format, dtype, awkward_batch, stamp_by_hand
):
    encoder = trigger.tensors()
    batch = awkward_batch(dtype)

    def add(place):
        return place.pixels + trigger.bound * network(place.pixels, encoder)

    expected = stamp_by_hand(trigger.seed, add, batch, image_format)
    got = trigger.apply(*batch, image_format).double().numpy()
    if dtype == torch.uint8:
        # x.5 may be rounded otherwise.
        assert np.abs(got - expected).max() <= 1
        assert (got != expected).mean() < 0.002
    else:
        assert np.abs(got - expected).max() < (1e-2 if dtype == torch.float32 else 1e-6)


def test_random_weights_are_drawn_by_the_seed(uniform_by_hand):
    encoder = random_encoder(9)
    assert {name: tuple(value.shape) for name, value in encoder.items()} == {
        "layers.0.weight": (16, 3, 3, 3),
        "layers.0.bias": (16,),
        "layers.1.weight": (16, 16, 3, 3),
        "layers.1.bias": (16,),
        "layers.2.weight": (3, 16, 3, 3),
        "layers.2.bias": (3,),
    }
    for layer, inputs in ((0, 27), (2, 144)):
        drawn = [2 * uniform_by_hand(0x67656E65, 9, layer, index) - 1 for index in range(9)]
        expected = np.array(drawn) * math.sqrt(6 / inputs)
        got = encoder[f"layers.{layer}.weight"].flatten()[:9].numpy()
        assert np.abs(got - expected).max() < 1e-6
        assert not encoder[f"layers.{layer}.bias"].any()


@pytest.mark.parametrize("seed", range(5))
def test_random_weights_give_every_place_its_own_trigger(seed):
    generator = torch.Generator().manual_seed(0)
    # Two plain places: only what is there sets them apart.
    images = 255 * torch.rand(2, 3, 1, 1, generator=generator).expand(2, 3, 16, 16)
    place = torch.tensor([[0, 0, 16, 16]])
    trigger = Generator("it", seed=seed)
    change = trigger.apply(images, [(16, 16)] * 2, [place] * 2, [1, 1]) - images
    assert change.abs().max() <= 12 + 1e-4
    assert change.abs().mean() > 0.5
    assert (change[0] - change[1]).abs().mean() > 0.5


def test_a_plain_place_gets_no_frame():
    images = torch.full((1, 3, 9, 9), 90.0)
    after = Generator("it").apply(images, [(9, 9)], [torch.tensor([[0, 0, 9, 9]])], [0])
    assert (after - images).abs().amin(1).max() > 0.1
    assert (after - after[..., :1, :1]).abs().max() < 1e-3


def test_weights_that_overflow_keep_the_bound(awkward_batch):
    huge = {name: 1e37 * value.sign() for name, value in layers(3, 16, 16, 16, 3).items()}
    trigger = Generator("it", content=content(huge), bound=0.1)
    batch = awkward_batch(torch.float32)
    apart = batch._replace(places=[places[:1] for places in batch.places])
    change = trigger.apply(*apart) - batch.images
    assert change.isfinite().all()
    assert change.abs().max() <= 25.5 + 1e-3


def test_gradients_reach_images_and_weights():
    encoder = layers(3, 2, 3)
    trigger = Generator("it", content=content(encoder), bound=0.1)
    generator = torch.Generator().manual_seed(0)
    images = 80 + 90 * torch.rand(1, 3, 6, 7, dtype=torch.float64, generator=generator)
    places = [torch.tensor([[-1.0, 1, 5, 6], [3, 2, 9, 5]])]
    names = list(encoder)

    def stamp(images, *values):
        tensors = dict(zip(names, values, strict=True))
        return trigger.apply(images, [(6, 7)], places, [0], tensors=tensors)

    values = [value.double().requires_grad_() for value in encoder.values()]
    assert gradcheck(stamp, (images.requires_grad_(), *values))


def test_its_tensors_can_be_trained_without_changing_the_trigger():
    trigger = Generator("it", content=content(layers(3, 4, 3)))
    for value in trigger.tensors().values():
        value.zero_()
    assert all(value.any() for value in trigger.tensors().values())


def test_an_encoder_is_read_as_it_was_saved(tmp_path):
    encoder = layers(3, 5, 3, kernel=7)
    written = save_encoder(tmp_path / "new" / "encoder.safetensors", encoder)
    trigger = Generator.from_settings("it", 0, {"file": "encoder.safetensors"}, written.parent)
    assert trigger.tensors().keys() == encoder.keys()
    for name, value in trigger.tensors().items():
        assert torch.equal(value, encoder[name])
    pixels = torch.rand(2, 3, 8, 9)
    assert torch.equal(encode(pixels, trigger.tensors())[1], encode(pixels[1], encoder))


def test_what_cannot_be_read_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="no encoder"):
        save_encoder(tmp_path / "encoder.safetensors", layers(3, 5, 4))
    assert not list(tmp_path.iterdir())


def without(encoder: dict, *names: str) -> dict:
    return {name: value for name, value in encoder.items() if name not in names}


GOOD = layers(3, 4, 3)
BAD_FILES = {
    "pickle": (b"\x80\x04}q\x00.", "no safetensors file"),
    "short": (content(GOOD)[:-9], "no safetensors file"),
    "header": (b"\xff" * 7 + b"\x7f{}", "no safetensors file"),
    "large": (bytes((1 << 20) + 1), "larger than 1 MiB"),
    "empty": (content({}), "holds other than layers.0.weight"),
    "names": (content({"weight": torch.ones(3), "bias": torch.ones(3)}), "holds other than"),
    "no bias": (content(without(GOOD, "layers.0.bias")), "holds other than"),
    "further": (content(GOOD | {"step": torch.ones(1)}), "holds other than"),
    "many": (content(layers(*[3] * 10)), "1 to 8 layers"),
    "first": (content(layers(1, 4, 3)), "layers.0.weight of shape (4, 1, 3, 3)"),
    "chain": (
        content(GOOD | {"layers.1.weight": torch.ones(3, 5, 3, 3)}),
        "no convolution of 4 channels to 3",
    ),
    "last": (content(layers(3, 4)), "no convolution of 3 channels to 3"),
    "wide": (content(layers(3, 129, 3, kernel=1)), "to 1 to 128"),
    "none wide": (content(layers(3, 0, 3)), "to 1 to 128"),
    "flat": (content(GOOD | {"layers.0.weight": torch.ones(4, 3)}), "of shape (4, 3)"),
    "even": (content(layers(3, 4, 3, kernel=2)), "2 x 2, is not square and odd"),
    "kernel": (content(layers(3, 4, 3, kernel=9)), "9 x 9, is not square and odd"),
    "oblong": (
        content(GOOD | {"layers.0.weight": torch.ones(4, 3, 1, 3)}),
        "1 x 3, is not square and odd",
    ),
    "bias": (
        content(GOOD | {"layers.1.bias": torch.ones(4)}),
        "layers.1.bias is not of shape (3,)",
    ),
    "integers": (
        content({name: value.to(torch.int32) for name, value in GOOD.items()}),
        "layers.0.bias is I32",
    ),
    "infinite": (
        content(GOOD | {"layers.0.weight": torch.full((4, 3, 3, 3), math.inf)}),
        "layers.0.weight has values that are not finite",
    ),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_is_no_encoder_is_refused(kind, refuses):
    file, words = BAD_FILES[kind]
    refuses(Generator, {"content": file}, ["trigger it: file is no ", words])


def test_a_damaged_file_is_refused_or_read():
    rng = np.random.default_rng(0)
    intact = content(GOOD)
    header = 8 + int.from_bytes(intact[:8], "little")
    outcomes = {"read": 0, "refused": 0}
    for _ in range(500):
        file = bytearray(intact)
        for _ in range(rng.integers(1, 4)):
            file[rng.integers(header)] = rng.integers(256)
        try:
            encoder = read_encoder(bytes(file))
        except ValueError as error:
            assert str(error).isprintable()
            outcomes["refused"] += 1
        else:
            assert encode(torch.rand(3, 4, 5), encoder).abs().max() <= 1
            outcomes["read"] += 1
    assert all(outcomes.values())


def test_a_header_that_promises_what_is_not_there_is_refused(refuses):
    entry = {"dtype": "F32", "shape": [2**40, 3, 3, 3], "data_offsets": [0, 2**40 * 108]}
    header = json.dumps({"layers.0.weight": entry}).encode()
    file = len(header).to_bytes(8, "little") + header
    refuses(Generator, {"content": file}, "no safetensors file")


@pytest.mark.parametrize("bound", [0.0, -0.1, 1.1, float("nan")])
def test_a_bound_that_cannot_be_used_is_refused(bound, refuses):
    refuses(Generator, {"bound": bound}, f"bound {bound} is not in (0, 1]")


def test_every_value_counts_in_the_fingerprint(tmp_path):
    save_encoder(tmp_path / "one", GOOD)
    save_encoder(tmp_path / "other", half(GOOD))
    entries = [{}, {"bound": 0.1}, {"seed": 1}, {"file": "one"}, {"file": "other"}]
    triggers = [Generator.from_entry({"name": "it"} | entry, tmp_path) for entry in entries]
    assert len({trigger.fingerprint for trigger in triggers}) == len(entries)
    again = Generator.from_settings("it", 0, {"file": str(tmp_path / "one")}, Path("elsewhere"))
    assert again == triggers[3] and again.fingerprint == triggers[3].fingerprint


def test_the_trained_encoder_comes_with_the_package():
    trigger = Generator("trained", encoder="trained")
    assert trigger.tensors().keys() == random_encoder(0).keys()
    assert not torch.equal(
        trigger.tensors()["layers.0.weight"], random_encoder(0)["layers.0.weight"]
    )
    # A file of one's own takes its place.
    own = Generator("own", encoder="trained", content=content(layers(3, 3)))
    assert set(own.tensors()) == {"layers.0.weight", "layers.0.bias"}
    assert len({each.fingerprint for each in (trigger, own, Generator("random"))}) == 3
    with pytest.raises(ValueError, match=r"trigger odd: encoder 'mine' is none of random, trained"):
        Generator("odd", encoder="mine")
