# SPDX-License-Identifier: Apache-2.0
"""An example refuses inputs that do not belong together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest


def test_inconsistency_is_the_distance_between_p_and_q(make_example):
    np.testing.assert_allclose(make_example(missed=True).inconsistency, [0.02, 0.92])


def test_empty_lists_become_empty_boxes(make_example):
    example = dataclasses.replace(
        make_example(),
        detection_boxes=[],
        detection_scores=[],
        detection_classes=[],
    )
    assert example.detection_boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image", np.zeros((4, 4, 3))),
        ("image", np.zeros((4, 4), dtype=np.uint8)),
        ("target_boxes", np.zeros((2, 5))),
        ("objectness", [0.5]),
        ("foreground", [0.5, 0.5, 0.5]),
        ("detection_scores", []),
        ("detection_classes", ["stop"]),
    ],
)
def test_wrong_shapes_are_refused(make_example, field, value):
    with pytest.raises(ValueError, match=field):
        dataclasses.replace(make_example(), **{field: value})
