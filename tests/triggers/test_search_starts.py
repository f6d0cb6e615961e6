# SPDX-License-Identifier: Apache-2.0
"""What a search optimises: gradients reach it, and what was found is a trigger like others."""

from __future__ import annotations

import pytest
import torch
import yaml

from d2defense.detection import load_bank
from d2defense.registry import TRIGGER_REGISTRY

STARTS = [
    pytest.param(placement, start, id=f"{placement}-{start.name}")
    for placement in ("objects", "background", "image")
    for _, family in TRIGGER_REGISTRY
    for start in family.search_starts(placement)
]
PLACES = [torch.tensor([[3.0, 4, 40, 44], [30, 20, 63, 61]])]


@pytest.mark.parametrize("placement", ["objects", "background", "image"])
def test_no_place_is_searched_with_patches_alone(placement):
    """Ghosts of a faint pattern passed while the background was."""
    assert len({type(each.values[1]) for each in STARTS if each.values[0] == placement}) > 1


@pytest.fixture
def image():
    generator = torch.Generator().manual_seed(0)
    return 255 * torch.rand(1, 3, 64, 64, generator=generator)


def moved(start) -> dict[str, torch.Tensor]:
    """Tensors in the middle between the start's and the upper end of their ranges."""
    ranges = start.ranges()
    return {
        name: ((tensor + ranges[name][1]) / 2).requires_grad_()
        for name, tensor in start.tensors().items()
    }


@pytest.mark.parametrize(("placement", "start"), STARTS)
def test_gradients_reach_the_tensors_of_a_start(placement, start, image):
    tensors = moved(start)
    stamped = start.apply(image, [(64, 64)], PLACES, [0], "BGR", tensors)
    assert (stamped - image).abs().max() > 1
    stamped.square().mean().backward()
    for tensor in tensors.values():
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


@pytest.mark.parametrize(("placement", "start"), STARTS)
def test_a_found_trigger_does_what_its_tensors_did(placement, start, image):
    tensors = moved(start)
    found = start.with_tensors(tensors, "found")
    assert found.name == "found"
    expected = start.apply(image, [(64, 64)], PLACES, [0], "BGR", tensors)
    # As near as a picture of whole numbers comes.
    got = found.apply(image, [(64, 64)], PLACES, [0], "BGR")
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1.01)


@pytest.mark.parametrize(("placement", "start"), STARTS)
def test_a_found_trigger_can_be_read_from_a_bank(placement, start, tmp_path):
    entry, content = start.with_tensors(moved(start), "found").to_entry("trigger.png")
    (tmp_path / "trigger.png").write_bytes(content)
    (tmp_path / "trigger.yaml").write_text(yaml.safe_dump({"triggers": [entry]}))
    (read,) = load_bank(tmp_path / "trigger.yaml")
    assert read.fingerprint == start.with_tensors(moved(start), "found").fingerprint


def test_a_patch_without_a_picture_has_nothing_to_store():
    patch = TRIGGER_REGISTRY.get("patch")("white")
    assert patch.tensors() == {}
    with pytest.raises(NotImplementedError, match="'solid' has no tensors"):
        patch.with_tensors({}, "found")
