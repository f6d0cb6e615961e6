# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from d2defense.ops import build_info, extension_available, inconsistency, inconsistency_reference

pytestmark = pytest.mark.skipif(not extension_available(), reason="d2defense._C is not built")

TYPES = [torch.float32, torch.float16, torch.bfloat16]
SETTINGS = {"topk": 7, "num_bins": 13, "epsilon": 0.2, "objectness_floor": 0.6}


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 80, 91, 1203])
def test_agrees_with_the_reference_for_any_number_of_classes(
    make_problem, assert_agrees, classes, dtype
):
    problem = make_problem([40, 3, 0, 17, 1], [3, 1, 2, 0, 1], classes, dtype, seed=classes)
    assert_agrees(
        inconsistency(**problem, **SETTINGS), inconsistency_reference(**problem, **SETTINGS)
    )


def test_groups_larger_than_a_unit_of_work_agree_with_the_reference(make_problem, assert_agrees):
    problem = make_problem([9000, 4096, 4097], [4, 0, 70], classes=6)
    settings = {"topk": 5000, "num_bins": 10}
    assert_agrees(
        inconsistency(**problem, **settings), inconsistency_reference(**problem, **settings)
    )


@pytest.mark.parametrize(
    ("proposals", "targets"),
    [([], []), ([0], [0]), ([0, 0], [2, 0]), ([5], [0]), ([1], [1]), ([0, 3], [0, 1])],
)
@pytest.mark.parametrize("classes", [1, 4])
def test_empty_groups_and_missing_targets(make_problem, assert_agrees, proposals, targets, classes):
    problem = make_problem(proposals, targets, classes)
    assert_agrees(
        inconsistency(**problem, num_bins=3), inconsistency_reference(**problem, num_bins=3)
    )


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 40])
def test_strided_and_expanded_inputs_agree_with_contiguous_ones(make_problem, classes, dtype):
    problem = make_problem([33, 20], [2, 2], classes, dtype)
    expected = inconsistency(**problem, num_bins=4)
    logits = problem["class_logits"]
    wide = torch.zeros(53, 2 * classes + 5, dtype=dtype)
    wide[:, 2 : classes + 3] = logits
    every_other = torch.zeros(53, 2 * classes + 2, dtype=dtype)
    every_other[:, ::2] = logits
    for strided in (logits.T.contiguous().T, wide[:, 2 : classes + 3], every_other[:, ::2]):
        assert not strided.is_contiguous()
        problem["class_logits"] = strided
        result = inconsistency(**problem, num_bins=4)
        assert all(
            torch.equal(a.nan_to_num(), b.nan_to_num())
            for a, b in zip(result, expected, strict=True)
        )

    problem["class_logits"] = logits[:1].expand(53, -1)
    problem["objectness_logits"] = problem["objectness_logits"][:1].expand(53)
    problem["proposal_boxes"] = problem["proposal_boxes"].T.contiguous().T
    expanded = inconsistency(**problem)
    problem["class_logits"] = problem["class_logits"].contiguous()
    repeated = inconsistency(**problem)
    assert torch.equal(expanded.tau_sum, repeated.tau_sum)
    assert torch.equal(expanded.target_matches, repeated.target_matches)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("objectness_logits", (20,)),
        ("class_logits", (20, 0)),
        ("class_logits", (20, 20)),
        ("class_logits", (20, 21)),
        ("proposal_boxes", (20, 0)),
        ("proposal_boxes", (20, 3)),
    ],
)
def test_a_proposal_that_is_not_finite_is_counted_as_such_and_nowhere_else(
    make_problem, assert_agrees, name, index, value
):
    problem = make_problem([33], [1], classes=21)
    without = {key: tensor.clone() for key, tensor in problem.items()}
    keep = torch.arange(33) != 20
    for key in ("objectness_logits", "class_logits", "proposal_boxes"):
        without[key] = without[key][keep]
    without["proposal_offsets"] = torch.tensor([0, 32])
    problem[name][index] = value

    result = inconsistency(**problem, num_bins=5)
    expected = inconsistency_reference(**without, num_bins=5)
    assert result.nonfinite.tolist() == [1]
    assert_agrees(result._replace(nonfinite=expected.nonfinite), expected)


def test_values_at_the_edge_of_their_type(assert_agrees):
    huge = torch.finfo(torch.float32).max
    problem = {
        "objectness_logits": torch.tensor([huge, 200.0, 0.0, -200.0, -huge]),
        "class_logits": torch.tensor(
            [[huge, -huge], [-huge, huge], [0.0, 0.0], [huge, huge], [-huge, -huge]]
        ),
        "proposal_boxes": torch.tensor([[-huge, -huge, huge, huge]]).repeat(5, 1),
        "proposal_offsets": torch.tensor([0, 5]),
        "target_boxes": torch.tensor(
            [[-huge, -huge, huge, huge], [math.nan, 0, 1, 1], [5, 5, 1, 1], [3, 3, 3, 3]]
        ),
        "target_offsets": torch.tensor([0, 4]),
        "target_classes": torch.tensor([0, 0, 0, -1]),
    }
    result = inconsistency(**problem, num_bins=2)
    assert_agrees(result, inconsistency_reference(**problem, num_bins=2))
    assert result.target_matches.tolist() == [5, 0, 0, 0]
    assert result.nonfinite.tolist() == [0]


def test_ious_equal_to_the_thresholds(assert_agrees):
    problem = {
        "objectness_logits": torch.tensor([1.0, 1.0, 1.0]),
        "class_logits": torch.tensor([[3.0, 0.0]] * 3),
        # IoU with the target: 50 / 100, 10 / 100 and 9 / 100.
        "proposal_boxes": torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 1], [0, 0, 9, 1]]),
        "proposal_offsets": torch.tensor([0, 3]),
        "target_boxes": torch.tensor([[0.0, 0, 10, 10]]),
        "target_offsets": torch.tensor([0, 1]),
        "target_classes": torch.tensor([0]),
    }
    result = inconsistency(**problem)
    assert_agrees(result, inconsistency_reference(**problem))
    assert result.target_matches.tolist() == [1]
    assert result.unmatched_foreground.tolist() == [1]


def test_topk_limits_tau_and_the_histogram_alone(make_problem):
    problem = make_problem([40], [2])
    everything = inconsistency(**problem, num_bins=4)
    first = inconsistency(**problem, num_bins=4, topk=5)
    assert int(first.histogram.sum()) == 5
    assert int(everything.histogram.sum()) == 40
    assert int(first.tau_count) < int(everything.tau_count)
    for name in ("confident_sum", "score_max", "target_matches", "unmatched_foreground"):
        assert torch.equal(getattr(first, name), getattr(everything, name)), name


@pytest.mark.parametrize(
    "instruction_set", ["baseline", pytest.param("avx2", marks=pytest.mark.slow)]
)
def test_every_instruction_set_agrees_with_the_reference(instruction_set):
    info = build_info()
    compiled = info["instruction_sets"]
    if instruction_set not in compiled:
        pytest.skip(f"compiled without {instruction_set}")
    if compiled.index(instruction_set) > compiled.index(info["instruction_set"]):
        pytest.skip(f"this process has nothing beyond {info['instruction_set']}")
    code = (
        "import sys, pytest\n"
        "from d2defense.ops import build_info\n"
        f"assert build_info()['instruction_set'] == {instruction_set!r}\n"
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', "
        "'any_number_of_classes or strided or edge or finite', *sys.argv[1:]]))"
    )
    environment = {**os.environ, "D2DEFENSE_CPU_CAPABILITY": instruction_set}
    backward = Path(__file__).with_name("test_inconsistency_backward.py")
    outcome = subprocess.run(
        [sys.executable, "-c", code, __file__, str(backward)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


def test_the_number_of_threads_leaves_no_trace_in_the_result(make_problem):
    problem = make_problem([30000, 10, 5000, 0, 20000], [9, 1, 0, 2, 3], classes=20)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 8, 1, 8):
            torch.set_num_threads(count)
            results.append(inconsistency(**problem, num_bins=50))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for name, first, other in zip(result._fields, results[0], result, strict=True):
            assert first.numpy().tobytes() == other.numpy().tobytes(), name


def test_a_group_gives_the_same_bits_wherever_it_stands(make_problem):
    problem = make_problem([7, 5000, 3], [1, 4, 0], classes=20)
    alone = {
        **{name: problem[name][7:5007] for name in ("objectness_logits", "class_logits")},
        "proposal_boxes": problem["proposal_boxes"][7:5007],
        "proposal_offsets": torch.tensor([0, 5000]),
        "target_boxes": problem["target_boxes"][1:],
        "target_offsets": torch.tensor([0, 4]),
        "target_classes": problem["target_classes"][1:],
    }
    together, single = inconsistency(**problem), inconsistency(**alone)
    for name in ("tau_sum", "confident_sum"):
        assert getattr(together, name)[1] == getattr(single, name)[0], name


def test_offsets_and_classes_may_have_any_strides(make_problem, assert_agrees):
    problem = make_problem([9, 4], [2, 3])
    expected = inconsistency_reference(**problem)
    for name in ("proposal_offsets", "target_offsets", "target_classes"):
        problem[name] = problem[name].repeat_interleave(2)[::2]
        assert not problem[name].is_contiguous()
    assert_agrees(inconsistency(**problem), expected)


@pytest.mark.slow
def test_more_than_two_to_the_31_logits():
    proposals, classes = 2**31 // 81 + 1000, 80
    rows = torch.zeros(1, classes + 1, dtype=torch.float16).expand(proposals, -1)
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(proposals, -1)
    result = inconsistency(
        torch.zeros(1, dtype=torch.float16).expand(proposals),
        rows,
        boxes,
        torch.tensor([0, proposals]),
        boxes[:1],
        torch.tensor([0, 1]),
        torch.tensor([3]),
    )
    # p = 1/2 and q = 80/81 for each.
    assert result.tau_count.tolist() == [proposals]
    assert float(result.tau_sum) == pytest.approx(proposals * (80 / 81 - 0.5), rel=1e-6)
    assert result.target_matches.tolist() == [proposals]
    assert float(result.target_true_class) == pytest.approx(1 / 81, rel=1e-6)
