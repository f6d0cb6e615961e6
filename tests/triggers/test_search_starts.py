# SPDX-License-Identifier: Apache-2.0
"""What a search optimises: gradients reach it, and what was found is a trigger like others."""

from __future__ import annotations

import pytest
import torch
import yaml

from d2defense.detection import load_bank
from d2defense.registry import TRIGGER_REGISTRY
from d2defense.triggers import PlaceKind, all_starts

STARTS = [
    pytest.param(kind, start, id=f"{kind.name}-{start.name}")
    for kind in PlaceKind
    for start in all_starts(kind)
]
PLACES = [torch.tensor([[3.0, 4, 40, 44], [30, 20, 63, 61]])]


@pytest.mark.parametrize("kind", PlaceKind)
def test_no_place_is_searched_with_patches_alone(kind):
    """Ghosts of a faint pattern passed while the background was."""
    assert len({type(each.values[1]) for each in STARTS if each.values[0] == kind}) > 1


def covered(kind: PlaceKind) -> float:
    """The largest share of a place's sides that a patch covers from which a search starts."""
    return max(max(start.size) for start in all_starts(kind, ["patch"]))


def test_what_is_to_change_is_never_covered_as_a_whole():
    assert covered(PlaceKind.BEARER) < 0.5
    assert covered(PlaceKind.APART) == 1


def test_families_can_be_chosen():
    assert {start.family for start in all_starts(PlaceKind.BEARER, ["overlay"])} == {"overlay"}
    assert all_starts(PlaceKind.BEARER, ["warp"]) == []


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


@pytest.mark.parametrize(("kind", "start"), STARTS)
def test_gradients_reach_the_tensors_of_a_start(kind, start, image):
    tensors = moved(start)
    stamped = start.apply(image, [(64, 64)], PLACES, [0], "BGR", tensors)
    assert (stamped - image).abs().max() > 1
    stamped.square().mean().backward()
    for tensor in tensors.values():
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


@pytest.mark.parametrize(("kind", "start"), STARTS)
def test_a_found_trigger_does_what_its_tensors_did(kind, start, image):
    tensors = moved(start)
    found = start.with_tensors(tensors, "found")
    assert found.name == "found"
    expected = start.apply(image, [(64, 64)], PLACES, [0], "BGR", tensors)
    # As near as a picture of whole numbers comes.
    got = found.apply(image, [(64, 64)], PLACES, [0], "BGR")
    torch.testing.assert_close(got, expected.detach(), rtol=0, atol=1.01)


@pytest.mark.parametrize(("kind", "start"), STARTS)
def test_a_found_trigger_can_be_read_from_a_bank(kind, start, tmp_path):
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
