# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from d2defense.checkpoint import build_detector


@pytest.fixture
def backdoored(specimen):
    """A backdoored specimen on the CPU and its configuration."""
    folder = specimen("backdoored_0")
    return build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")


@pytest.fixture
def scenes(make_coco_dataset, sign_scenes):
    """Registered name of a dataset of eight scenes of synth_signs."""
    return make_coco_dataset(sign_scenes(8)).name
