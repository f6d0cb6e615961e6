# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from d2defense.ops import extension_available, inconsistency, inconsistency_reference

IMPLEMENTATIONS = [inconsistency_reference]
if extension_available():
    IMPLEMENTATIONS.append(inconsistency)

WRONG_TENSORS = {
    "objectness_logits of two dimensions": ("objectness_logits", lambda t: t[None], ValueError),
    "objectness_logits of integers": ("objectness_logits", torch.Tensor.int, TypeError),
    "class_logits short of a row": ("class_logits", lambda t: t[:-1], ValueError),
    "class_logits with the background alone": ("class_logits", lambda t: t[:, :1], ValueError),
    "class_logits of another type": ("class_logits", torch.Tensor.half, TypeError),
    "class_logits of one dimension": ("class_logits", lambda t: t[:, 0], ValueError),
    "class_logits elsewhere": ("class_logits", lambda t: t.to("meta"), ValueError),
    "proposal_boxes elsewhere": ("proposal_boxes", lambda t: t.to("meta"), ValueError),
    "proposal_offsets elsewhere": ("proposal_offsets", lambda t: t.to("meta"), ValueError),
    "target_offsets elsewhere": ("target_offsets", lambda t: t.to("meta"), ValueError),
    "target_classes elsewhere": ("target_classes", lambda t: t.to("meta"), ValueError),
    "proposal_boxes with five columns": (
        "proposal_boxes",
        lambda t: torch.cat([t, t[:, :1]], 1),
        ValueError,
    ),
    "proposal_boxes of halves": ("proposal_boxes", torch.Tensor.half, TypeError),
    "proposal_offsets that are empty": ("proposal_offsets", lambda t: t[:0], ValueError),
    "proposal_offsets of int32": ("proposal_offsets", torch.Tensor.int, TypeError),
    "proposal_offsets that start late": (
        "proposal_offsets",
        lambda t: torch.tensor([1, 4, 9]),
        ValueError,
    ),
    "proposal_offsets that decrease": (
        "proposal_offsets",
        lambda t: torch.tensor([0, 12, 9]),
        ValueError,
    ),
    "proposal_offsets that end early": (
        "proposal_offsets",
        lambda t: torch.tensor([0, 4, 8]),
        ValueError,
    ),
    "proposal_offsets that end late": (
        "proposal_offsets",
        lambda t: torch.tensor([0, 4, 10]),
        ValueError,
    ),
    "target_boxes of one dimension": ("target_boxes", torch.Tensor.flatten, ValueError),
    "target_offsets of other groups": (
        "target_offsets",
        lambda t: torch.tensor([0, 1, 2, 3]),
        ValueError,
    ),
    "target_offsets below zero": (
        "target_offsets",
        lambda t: torch.tensor([0, -1, 3]),
        ValueError,
    ),
    "target_classes short of one": ("target_classes", lambda t: t[:-1], ValueError),
    "target_classes of int32": ("target_classes", torch.Tensor.int, TypeError),
    "target_classes with the background": (
        "target_classes",
        lambda t: torch.tensor([0, 5, 1]),
        ValueError,
    ),
    "target_classes below -1": ("target_classes", lambda t: torch.tensor([0, -2, 1]), ValueError),
}

WRONG_SETTINGS = [
    ("epsilon", -0.1),
    ("epsilon", float("nan")),
    ("epsilon", float("inf")),
    ("topk", -1),
    ("objectness_floor", 1.5),
    ("objectness_floor", float("nan")),
    ("iou_threshold", 0.0),
    ("iou_threshold", 1.1),
    ("num_bins", -1),
    ("num_bins", 2**21),
]


@pytest.mark.parametrize("function", IMPLEMENTATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", WRONG_TENSORS)
def test_a_wrong_tensor_is_named(make_problem, case, function):
    problem = make_problem([4, 5], [1, 2], classes=5)
    name, spoil, error = WRONG_TENSORS[case]
    problem[name] = spoil(problem[name])
    with pytest.raises(error, match=f"^{name} must "):
        function(**problem)


@pytest.mark.parametrize("function", IMPLEMENTATIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize(("name", "value"), WRONG_SETTINGS)
def test_a_wrong_setting_is_named(make_problem, name, value, function):
    with pytest.raises(ValueError, match=f"^{name} must "):
        function(**make_problem([4, 5], [1, 2]), **{name: value})


@pytest.mark.skipif(not extension_available(), reason="d2defense._C is not built")
def test_the_compiled_operator_takes_no_doubles(make_problem):
    problem = make_problem([4, 5], [1, 2])
    for name in ("objectness_logits", "class_logits"):
        problem[name] = problem[name].double()
    with pytest.raises(TypeError, match=r"^objectness_logits must be Float"):
        inconsistency(**problem)
