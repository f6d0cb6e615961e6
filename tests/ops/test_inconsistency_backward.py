# SPDX-License-Identifier: Apache-2.0
"""Gradients of the operator against autograd of the float64 reference, itself under gradcheck."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from d2defense.ops import (
    extension_available,
    foreground,
    inconsistency,
    inconsistency_reference,
    objectness,
)

compiled = pytest.mark.skipif(not extension_available(), reason="d2defense._C is not built")

LOGITS = ("objectness_logits", "class_logits")
SUMS = ("tau_sum", "confident_sum")
MAXIMA = ("target_objectness", "target_foreground", "target_true_class")
TOLERANCE = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = [
    ([40, 3, 0, 17, 1], [3, 1, 2, 0, 1]),
    ([5000, 4096, 4097], [4, 0, 9]),
    ([9], [0]),
    ([0, 0], [2, 0]),
    ([], []),
    ([1], [5]),
]


def gradients_of(function, problem, fields=(*SUMS, *MAXIMA), seed=0, **settings):
    """Gradients of a random weighted sum of `fields` with respect to both logits."""
    problem = {**problem, **{name: problem[name].clone().requires_grad_() for name in LOGITS}}
    result = function(**problem, **settings)
    generator = torch.Generator().manual_seed(seed)
    loss = torch.zeros((), dtype=torch.float64)
    for name in fields:
        values = getattr(result, name).double()
        weights = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        loss = loss + (torch.where(values.isnan(), 0.0, values) * weights).sum()
    if not loss.requires_grad:
        return [torch.zeros_like(problem[name]) for name in LOGITS]
    return torch.autograd.grad(loss, [problem[name] for name in LOGITS], materialize_grads=True)


def assert_gradients_agree(problem, **settings):
    exact = {**problem, **{name: problem[name].double() for name in LOGITS}}
    expected = gradients_of(inconsistency_reference, exact, **settings)
    for name, gradient, reference in zip(
        LOGITS, gradients_of(inconsistency, problem, **settings), expected, strict=True
    ):
        assert gradient.dtype == problem[name].dtype
        assert gradient.shape == problem[name].shape
        tolerance = TOLERANCE[gradient.dtype]
        scale = float(reference.abs().max()) if reference.numel() else 0.0
        torch.testing.assert_close(
            gradient.double(),
            reference,
            rtol=tolerance,
            atol=tolerance * scale,
            msg=lambda text, name=name: f"{name}: {text}",
        )


@compiled
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("classes", [1, 2, 7, 8, 15, 16, 17, 80, 257])
def test_agrees_with_the_reference_for_any_number_of_classes(make_problem, classes, dtype):
    problem = make_problem(*SHAPES[0], classes, dtype, seed=classes)
    assert_gradients_agree(problem, topk=7, epsilon=0.2, objectness_floor=0.6)


@compiled
@pytest.mark.parametrize(("proposals", "targets"), SHAPES)
@pytest.mark.parametrize("fields", [SUMS, MAXIMA, *((name,) for name in (*SUMS, *MAXIMA))])
def test_agrees_with_the_reference_for_any_groups(make_problem, proposals, targets, fields):
    assert_gradients_agree(make_problem(proposals, targets), fields=fields)


@compiled
@pytest.mark.parametrize(
    "settings",
    [
        {"epsilon": 0.0},
        {"epsilon": 1.0},
        {"topk": 1},
        {"topk": 10**9},
        {"objectness_floor": 0.0},
        {"objectness_floor": 1.0},
        {"iou_threshold": 1.0},
        {"iou_threshold": 1e-9, "num_bins": 3},
    ],
    ids=str,
)
def test_agrees_with_the_reference_at_the_edges_of_the_settings(make_problem, settings):
    assert_gradients_agree(make_problem([30, 12], [3, 2]), **settings)


@compiled
def test_many_targets_may_want_the_same_proposal(make_problem):
    problem = make_problem([3], [1], classes=4)
    problem["target_boxes"] = problem["target_boxes"].expand(6, -1)
    problem["proposal_boxes"] = problem["target_boxes"][:1].expand(3, -1)
    problem["target_offsets"] = torch.tensor([0, 6])
    problem["target_classes"] = torch.tensor([2, 0, 2, -1, 3, 2])
    assert_gradients_agree(problem)


@compiled
@pytest.mark.parametrize("classes", [3, 40])
def test_strided_and_expanded_logits(make_problem, classes):
    problem = make_problem([33, 20], [2, 2], classes)
    expected = gradients_of(inconsistency, problem)
    transposed = {**problem, "class_logits": problem["class_logits"].T.contiguous().T}
    for gradient, other in zip(expected, gradients_of(inconsistency, transposed), strict=True):
        assert torch.equal(gradient, other)

    row = problem["class_logits"][:1].clone().requires_grad_()
    rows = problem["class_logits"][:1].expand(53, -1).clone().requires_grad_()
    for logits in (row.expand(53, -1), rows):
        inconsistency(**{**problem, "class_logits": logits}).confident_sum.sum().backward()
    torch.testing.assert_close(row.grad, rows.grad.sum(0, keepdim=True))


def separated(make_problem, seed: int, margin: float):
    """A small problem none of whose decisions changes when a logit moves a little."""
    while True:
        problem = make_problem([6, 0, 4], [2, 1, 1], classes=3, seed=seed)
        p, q = objectness(problem["objectness_logits"]), foreground(problem["class_logits"])
        probability = problem["class_logits"].double().softmax(1)
        matches = inconsistency_reference(**problem).target_matches
        far = all(
            float((values - edge).abs().min()) > margin
            for values, edge in ((p - q, 0.0), ((p - q).abs(), 0.1), (p, 0.8))
        )
        apart = all(
            float(values.sort().values.diff().min()) > margin for values in (p, q, *probability.T)
        )
        if far and apart and int(matches.max()) > 1:
            return problem
        seed += 1000


def as_function(function, problem, dtype, fields):
    def call(objectness_logits, class_logits):
        logits = {
            "objectness_logits": objectness_logits.to(dtype),
            "class_logits": class_logits.to(dtype),
        }
        result = function(**{**problem, **logits})
        known = problem["target_classes"] >= 0
        result = result._replace(target_true_class=result.target_true_class[known])
        return tuple(getattr(result, name) for name in fields)

    return call, [problem[name].double().requires_grad_() for name in LOGITS]


@pytest.mark.parametrize("seed", range(6))
def test_gradcheck_of_the_reference(make_problem, seed):
    problem = separated(make_problem, seed, 1e-5)
    call, logits = as_function(inconsistency_reference, problem, torch.float64, (*SUMS, *MAXIMA))
    assert torch.autograd.gradcheck(call, logits)


@compiled
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("fields", [SUMS, MAXIMA], ids=["sums", "maxima"])
def test_gradcheck_of_the_operator(make_problem, seed, fields):
    """Steps as wide as float32 needs, on problems in which they change no decision."""
    problem = separated(make_problem, seed, 2e-3)
    call, logits = as_function(inconsistency, problem, torch.float32, fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.autograd.gradcheck(call, logits, eps=2e-3, atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize(
    "function",
    [inconsistency_reference, pytest.param(inconsistency, marks=compiled)],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_first_of_equal_proposals_gets_the_gradient(function, dtype):
    rows = 9001  # More than two units of work hold.
    boxes = torch.tensor([[0.0, 0, 10, 10]]).expand(rows, -1).clone()
    boxes[:3] += 50  # Their logits are as large, but they do not match.
    problem = {
        "objectness_logits": torch.zeros(rows, dtype=dtype),
        "class_logits": torch.zeros(rows, 3, dtype=dtype),
        "proposal_boxes": boxes,
        "proposal_offsets": torch.tensor([0, rows]),
        "target_boxes": torch.tensor([[0.0, 0, 10, 10]]),
        "target_offsets": torch.tensor([0, 1]),
        "target_classes": torch.tensor([1]),
    }
    problem["objectness_logits"][[1, 5, 7, 9000]] = 2.0
    problem["class_logits"][[2, 6, 8, 9000], 1] = 3.0
    of_objectness = gradients_of(function, problem, ("target_objectness",))
    assert of_objectness[0].nonzero().tolist() == [[5]]
    assert not of_objectness[1].any()
    for name in ("target_foreground", "target_true_class"):
        gradient = gradients_of(function, problem, (name,))
        assert gradient[1].nonzero()[:, 0].unique().tolist() == [6]
        assert not gradient[0].any()


@compiled
def test_values_that_round_to_the_same_result_are_equal(make_problem):
    """sigmoid(20) and sigmoid(30) are both 1 in float32, so that the first is the largest."""
    problem = make_problem([2], [1])
    problem["proposal_boxes"] = problem["target_boxes"].expand(2, -1)
    problem["objectness_logits"] = torch.tensor([20.0, 30.0])
    gradient, _ = gradients_of(inconsistency, problem, ("target_objectness",))
    assert gradient.nonzero().tolist() == [[0]]


@pytest.mark.parametrize(
    "function",
    [inconsistency_reference, pytest.param(inconsistency, marks=compiled)],
    ids=lambda f: f.__name__,
)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["objectness_logits", "class_logits", "proposal_boxes"])
def test_a_proposal_that_is_not_finite_has_no_gradient(make_problem, function, name, value):
    problem = make_problem([33], [1], classes=21)
    problem[name].view(33, -1)[20, -1] = value
    keep = torch.arange(33) != 20
    without = {**problem, "proposal_offsets": torch.tensor([0, 32])}
    for each in (*LOGITS, "proposal_boxes"):
        without[each] = problem[each][keep]
    settings = {"epsilon": 0.0, "objectness_floor": 0.0}
    expected = gradients_of(function, without, **settings)
    for gradient, other in zip(gradients_of(function, problem, **settings), expected, strict=True):
        assert not gradient[20].any()
        torch.testing.assert_close(gradient[keep], other)


@compiled
def test_a_gradient_that_is_not_finite_reaches_only_what_it_belongs_to(make_problem):
    problem = make_problem([20, 20], [1, 1])
    logits = problem["objectness_logits"].requires_grad_()
    result = inconsistency(**problem)
    assert all(0 < count < 20 for count in result.confident_count.tolist())
    (result.confident_sum * torch.tensor([math.nan, 1.0])).sum().backward()
    confident = objectness(logits) > 0.8
    assert torch.equal(logits.grad.isnan(), confident & (torch.arange(40) < 20))


@compiled
def test_only_what_can_be_differentiated_has_a_gradient(make_problem):
    problem = make_problem([9, 4], [1, 2])
    problem["class_logits"].requires_grad_()
    result = inconsistency(**problem)
    assert {name for name in result._fields if getattr(result, name).requires_grad} == {
        *SUMS,
        *MAXIMA,
    }
    with torch.no_grad():
        assert not any(tensor.requires_grad for tensor in inconsistency(**problem))
    boxes = make_problem([9, 4], [1, 2])
    boxes["proposal_boxes"].requires_grad_()
    assert not any(tensor.requires_grad for tensor in inconsistency(**boxes))


@compiled
def test_a_call_that_keeps_something_gives_the_same_bits(make_problem):
    problem = make_problem([5000, 40], [9, 2], classes=20)
    plain = inconsistency(**problem, num_bins=5)
    problem["class_logits"].requires_grad_()
    for name, kept, other in zip(
        plain._fields, inconsistency(**problem, num_bins=5), plain, strict=True
    ):
        assert kept.detach().numpy().tobytes() == other.numpy().tobytes(), name


@compiled
def test_the_number_of_threads_leaves_no_trace_in_a_gradient(make_problem):
    problem = make_problem([30000, 10, 5000, 0, 20000], [9, 1, 0, 2, 3], classes=20)
    problem["class_logits"] = problem["class_logits"].round()
    problem["objectness_logits"] = problem["objectness_logits"].round()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 8, 1, 8):
            torch.set_num_threads(count)
            results.append(gradients_of(inconsistency, problem))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for first, other in zip(results[0], result, strict=True):
            assert first.numpy().tobytes() == other.numpy().tobytes()


@compiled
def test_nothing_of_the_logits_size_is_allocated_but_the_gradient(make_problem):
    problem = make_problem([20000, 20000], [5, 5], classes=80)
    problem["class_logits"].requires_grad_()
    size = problem["class_logits"].nbytes
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as forward:
        result = inconsistency(**problem)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as backward:
        torch.autograd.grad(result.tau_sum.sum(), problem["class_logits"])

    def allocated(recorded):
        return sum(max(0, event.self_cpu_memory_usage) for event in recorded.events())

    assert allocated(forward) < 0.1 * size
    assert size <= allocated(backward) < 1.1 * size


@compiled
def test_second_derivatives_and_forward_mode_are_refused(make_problem):
    problem = make_problem([9], [1])
    logits = problem["class_logits"].requires_grad_()
    total = inconsistency(**problem).confident_sum.sum()
    (gradient,) = torch.autograd.grad(total, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="_inconsistency_backward is not implemented"):
        gradient.sum().backward()

    logits = logits.detach()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="jvp"):
        dual = torch.autograd.forward_ad.make_dual(logits, torch.ones_like(logits))
        inconsistency(**{**problem, "class_logits": dual})


@compiled
def test_compiles_with_its_gradient(make_problem):
    problem = make_problem([30, 11], [2, 1])
    names = tuple(problem)

    def gradient_of(function):
        tensors = [tensor.clone() for tensor in problem.values()]
        tensors[1].requires_grad_()
        function(*tensors).backward()
        return tensors[1].grad

    def loss(*tensors):
        result = inconsistency(**dict(zip(names, tensors, strict=True)))
        return (result.tau_sum / result.tau_count).sum() + result.target_objectness.sum()

    traced = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(gradient_of(traced), gradient_of(loss))


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck_finds_no_fault(make_problem, dtype):
    problem = make_problem([9, 0, 4], [2, 1, 0], dtype=dtype)
    for name in LOGITS:
        problem[name].requires_grad_()
    torch.library.opcheck(
        torch.ops.d2defense.inconsistency.default,
        tuple(problem.values()),
        {"topk": 3, "num_bins": 4, "epsilon": 0.2},
    )


def backward_arguments(problem):
    """Arguments of the backward operator by name, as a call of the forward one gives them."""
    result = torch.ops.d2defense._inconsistency_forward(*problem.values())
    groups, targets = len(problem["proposal_offsets"]) - 1, len(problem["target_classes"])
    return {
        "tau_sum_grad": torch.ones(groups, dtype=torch.float64),
        "confident_sum_grad": torch.ones(groups, dtype=torch.float64),
        "target_objectness_grad": torch.ones(targets),
        "target_foreground_grad": torch.ones(targets),
        "target_true_class_grad": torch.ones(targets),
        **dict(zip(("largest_logit", "foreground_sum", "maximum_rows"), result[12:], strict=True)),
        **problem,
    }


@compiled
@pytest.mark.parametrize(
    ("name", "spoil", "error"),
    [
        ("tau_sum_grad", lambda t: t[:-1], ValueError),
        ("tau_sum_grad", torch.Tensor.float, TypeError),
        ("confident_sum_grad", lambda t: t[None], ValueError),
        ("target_objectness_grad", lambda t: torch.cat([t, t]), ValueError),
        ("target_foreground_grad", torch.Tensor.double, TypeError),
        ("target_true_class_grad", lambda t: t[:0], ValueError),
        ("largest_logit", lambda t: t[:-1], ValueError),
        ("largest_logit", torch.Tensor.half, TypeError),
        ("foreground_sum", lambda t: t[1:], ValueError),
        ("maximum_rows", lambda t: t[:2], ValueError),
        ("maximum_rows", torch.Tensor.int, TypeError),
        ("proposal_offsets", lambda t: torch.tensor([0, 12, 9]), ValueError),
        ("target_classes", lambda t: torch.tensor([0, 5, 1]), ValueError),
        ("class_logits", lambda t: t[:, :1], ValueError),
    ],
)
def test_a_wrong_argument_of_the_backward_operator_is_named(make_problem, name, spoil, error):
    arguments = backward_arguments(make_problem([4, 5], [1, 2], classes=5))
    arguments[name] = spoil(arguments[name])
    with pytest.raises(error, match=f"^{name} must "):
        torch.ops.d2defense._inconsistency_backward(*arguments.values())


@compiled
def test_rows_that_do_not_exist_are_nobodys_maximum(make_problem):
    arguments = backward_arguments(make_problem([4, 5], [1, 2], classes=5))
    for name in ("tau_sum_grad", "confident_sum_grad"):
        arguments[name] = None
    for row in (9, -5, 1 << 40, -(1 << 62)):
        arguments["maximum_rows"] = torch.full((3, 3), row)
        for gradient in torch.ops.d2defense._inconsistency_backward(*arguments.values()):
            assert not gradient.any()
