# SPDX-License-Identifier: Apache-2.0
"""How long a repair fine-tunes, by how many images there are."""

from __future__ import annotations

import pytest

from d2defense.checkpoint import find_checkpoints
from d2defense.workflows.fine_tuning import FineTuningOptions, fine_tuning_config


@pytest.fixture
def steps(specimen, make_coco_dataset, sign_scenes, tmp_path):
    """A function from a number of images, a method and overrides to the steps of a repair."""
    (source,) = find_checkpoints([specimen("clean_1")], only_final=True)

    def steps(images: int, method: str, *overrides: str) -> int:
        options = FineTuningOptions(method=method, overrides=overrides)
        dataset = make_coco_dataset(sign_scenes(images))
        return fine_tuning_config(source, dataset, tmp_path / "out", options).SOLVER.MAX_ITER

    return steps


def test_few_images_are_not_gone_through_without_end(steps):
    # 100 passes through 3 images, 8 of them a step; a method takes its share of that.
    assert steps(3, "vanilla") == 38
    assert steps(3, "unlearn") == round(0.6 * 38)
    assert steps(30, "vanilla") == 350


def test_steps_that_are_asked_for_are_taken(steps):
    assert steps(3, "vanilla", "REMOVAL.SOLVER.MAX_ITER", "350") == 350
    assert steps(3, "vanilla", "REMOVAL.MAX_PASSES", "0") == 350
    assert steps(3, "vanilla", "REMOVAL.MAX_PASSES", "8") == 3
