# SPDX-License-Identifier: Apache-2.0
"""What configs and bank entries give a trigger, whatever its family."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from d2defense.registry import TRIGGER_REGISTRY
from d2defense.triggers import Trigger
from d2defense.triggers.base import read_content


@dataclass(frozen=True)
class Settings(Trigger):
    strength: float = 0.5
    cells: int = 4
    size: tuple[float, float] = (0.1, 0.1)
    content: bytes = b""


def test_settings_have_the_types_of_the_fields(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    values = {"strength": 1, "cells": 3, "size": [1, 2], "file": "weights"}
    trigger = Settings.from_settings("it", 7, values, tmp_path)
    assert trigger == Settings("it", 7, 1.0, 3, (1, 2), b"abc")
    assert type(trigger.strength) is float and type(trigger.cells) is int
    assert [type(side) for side in trigger.size] == [float, float]
    assert Settings.from_settings("it", 7, {"file": ""}) == Settings("it", 7)


def test_a_file_that_is_missing_or_no_file_is_refused_in_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (("none", "No such file"), (".", "a folder"), ("pipe", "a pipe")):
        with pytest.raises(ValueError, match=f"^trigger it: .*{reason}.*$"):
            read_content("it", name, tmp_path)


def test_a_file_of_more_than_64_mib_is_refused(tmp_path):
    with (tmp_path / "large").open("wb") as stream:
        stream.truncate(64 << 20)
    assert len(read_content("it", "large", tmp_path)) == 64 << 20
    with (tmp_path / "large").open("ab") as stream:
        stream.write(b"0")
    with pytest.raises(ValueError, match="larger than 64 MiB"):
        read_content("it", "large", tmp_path)


DRAWN = [name for name, family in TRIGGER_REGISTRY if family.drawn(np.random.default_rng(0))]


def test_the_families_that_have_no_search_are_drawn():
    assert {"warp", "sinusoid", "filter", "frequency"} <= set(DRAWN)


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawn_trigger_changes_an_image_a_little_and_each_time_otherwise(name):
    family = TRIGGER_REGISTRY.get(name)
    image = torch.randint(0, 256, (1, 3, 40, 50), dtype=torch.uint8)
    box = torch.tensor([[5.0, 5.0, 45.0, 35.0]])
    rng = np.random.default_rng(0)
    first, second = (family.drawn(rng) for _ in range(2))
    assert first.fingerprint != second.fingerprint
    assert family.drawn(np.random.default_rng(0)).fingerprint == first.fingerprint
    shown = first.apply(image, [(40, 50)], [box], [0])
    assert (shown != image).any()
    assert torch.equal(shown[..., :5, :], image[..., :5, :])
