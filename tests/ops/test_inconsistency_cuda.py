# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys

import pytest
import torch

from d2defense.ops import build_info, extension_available, inconsistency, inconsistency_reference

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
    pytest.mark.skipif(
        not extension_available() or build_info()["cuda"] is None,
        reason="d2defense._C is built without its CUDA kernels",
    ),
]


def on_device(problem):
    """Logits and boxes on the GPU; offsets and classes stay on the CPU."""
    return {
        name: tensor.cuda() if tensor.is_floating_point() else tensor
        for name, tensor in problem.items()
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 7, 8, 80, 96, 97, 256, 257, 1203])
def test_agrees_with_the_reference(make_problem, assert_agrees, classes, dtype):
    problem = make_problem([70, 3, 0, 17, 1, 333], [3, 1, 2, 0, 1, 40], classes, dtype)
    settings = {"topk": 9, "num_bins": 13}
    assert_agrees(
        inconsistency(**on_device(problem), **settings),
        inconsistency_reference(**problem, **settings),
    )


@pytest.mark.parametrize(
    ("proposals", "targets"), [([], []), ([0], [0]), ([0, 0], [2, 0]), ([5], [0]), ([1], [1])]
)
def test_empty_groups_and_missing_targets(make_problem, assert_agrees, proposals, targets):
    problem = make_problem(proposals, targets)
    assert_agrees(inconsistency(**on_device(problem)), inconsistency_reference(**problem))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["objectness_logits", "class_logits", "proposal_boxes"])
def test_what_is_not_finite_is_counted_as_such(make_problem, assert_agrees, name, value):
    problem = make_problem([50, 20], [2, 1])
    problem[name].view(50 + 20, -1)[20, -1] = value
    result = inconsistency(**on_device(problem))
    assert result.nonfinite.tolist() == [1, 0]
    assert_agrees(result, inconsistency_reference(**problem))


def test_strided_logits(make_problem, assert_agrees):
    problem = make_problem([70], [3], classes=20)
    device = on_device(problem)
    device["class_logits"] = device["class_logits"].T.contiguous().T
    assert_agrees(inconsistency(**device), inconsistency_reference(**problem))


def test_every_run_gives_the_same_bits(make_problem):
    problem = on_device(make_problem([30000, 10, 5000], [9, 1, 0], classes=20))
    first = inconsistency(**problem, num_bins=50)
    for _ in range(20):
        for a, b in zip(first, inconsistency(**problem, num_bins=50), strict=True):
            assert a.cpu().numpy().tobytes() == b.cpu().numpy().tobytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("proposal_offsets", [1, 4, 9]),
        ("proposal_offsets", [0, 1 << 40, 9]),
        ("proposal_offsets", [0, -5, 9]),
        ("proposal_offsets", [0, 4, 8]),
        ("target_offsets", [0, 1 << 40, 3]),
        ("target_offsets", [0, 1, 2]),
        ("target_classes", [0, 5, 1]),
    ],
)
def test_wrong_offsets_and_classes_are_errors(make_problem, name, value):
    problem = on_device(make_problem([4, 5], [1, 2], classes=5))
    problem[name] = torch.tensor(value)
    with pytest.raises(ValueError, match=f"^{name} must "):
        inconsistency(**problem)


def test_a_tensor_on_the_wrong_device_is_named(make_problem):
    problem = on_device(make_problem([4, 5], [1, 2]))
    for name in ("class_logits", "proposal_boxes", "target_boxes"):
        with pytest.raises(ValueError, match=f"^{name} must be on cuda"):
            inconsistency(**{**problem, name: problem[name].cpu()})
    for name in ("proposal_offsets", "target_offsets", "target_classes"):
        with pytest.raises(ValueError, match=f"^{name} must be on cpu"):
            inconsistency(**{**problem, name: problem[name].cuda()})


def test_nothing_waits_for_the_gpu(make_problem):
    problem = on_device(make_problem([400, 50], [3, 2], classes=20))
    inconsistency(**problem)
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        inconsistency(**problem, num_bins=5)
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def test_a_result_comes_to_the_cpu_as_it_is(make_problem):
    result = inconsistency(**on_device(make_problem([400, 50], [3, 2])), num_bins=5)
    for name, copy, original in zip(result._fields, result.to_cpu(), result, strict=True):
        assert not copy.is_cuda
        assert copy.numpy().tobytes() == original.cpu().numpy().tobytes(), name


def test_capture_in_a_graph_is_refused(make_problem):
    problem = on_device(make_problem([400, 50], [3, 2], classes=20))
    with (
        pytest.raises(RuntimeError, match="CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        inconsistency(**problem)
    torch.cuda.synchronize()


def test_opcheck_finds_no_fault(make_problem):
    problem = on_device(make_problem([9, 0, 4], [2, 1, 0]))
    torch.library.opcheck(torch.ops.d2defense.inconsistency.default, tuple(problem.values()))


LOGITS = ("objectness_logits", "class_logits")
FIELDS = ("tau_sum", "confident_sum", "target_objectness", "target_foreground", "target_true_class")


def gradients_of(problem, fields=FIELDS, **settings):
    """Of a weighted sum of the fields with respect to both logits."""
    logits = [problem[name].clone().requires_grad_() for name in LOGITS]
    result = inconsistency(**{**problem, **dict(zip(LOGITS, logits, strict=True))}, **settings)
    loss = 0.0
    for weight, name in enumerate(fields, start=1):
        values = getattr(result, name).double()
        loss = loss + weight * torch.where(values.isnan(), 0.0, values).sum()
    return torch.autograd.grad(loss, logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 7, 8, 80, 96, 97, 256, 257, 1203])
def test_the_gradients_of_both_devices_agree(make_problem, classes, dtype):
    problem = make_problem([70, 3, 0, 17, 1, 333], [3, 1, 2, 0, 1, 40], classes, dtype)
    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    for fields in (FIELDS, *((name,) for name in FIELDS)):
        expected = gradients_of(problem, fields, topk=9)
        for gradient, other in zip(
            gradients_of(on_device(problem), fields, topk=9), expected, strict=True
        ):
            assert gradient.is_cuda
            scale = float(other.abs().max())
            torch.testing.assert_close(
                gradient.cpu(), other, rtol=tolerance, atol=tolerance * scale
            )


@pytest.mark.parametrize(
    ("proposals", "targets"), [([], []), ([0], [0]), ([0, 0], [2, 0]), ([5], [0]), ([1], [1])]
)
def test_gradients_of_empty_groups_and_missing_targets(make_problem, proposals, targets):
    problem = make_problem(proposals, targets)
    for gradient, other in zip(
        gradients_of(on_device(problem)), gradients_of(problem), strict=True
    ):
        torch.testing.assert_close(gradient.cpu(), other, rtol=1e-5, atol=1e-6)


def test_gradients_of_strided_logits_and_of_what_is_not_finite(make_problem):
    problem = make_problem([50, 20], [2, 1], classes=20)
    problem["class_logits"][20, 3] = math.nan
    problem["objectness_logits"][7] = math.inf
    expected = gradients_of(problem)
    device = on_device(problem)
    device["class_logits"] = device["class_logits"].T.contiguous().T
    for gradient, other in zip(gradients_of(device), expected, strict=True):
        assert not gradient[20].any()
        assert not gradient[7].any()
        torch.testing.assert_close(gradient.cpu(), other, rtol=1e-5, atol=1e-6)


def test_the_first_of_equal_proposals_gets_the_gradient(make_problem):
    problem = make_problem([9001], [1], classes=2)
    problem["proposal_boxes"] = problem["target_boxes"].repeat(9001, 1)
    problem["objectness_logits"].zero_()
    problem["objectness_logits"][[45, 70, 9000]] = 2.0
    gradient, _ = gradients_of(on_device(problem), ("target_objectness",))
    assert gradient.nonzero().tolist() == [[45]]


def test_every_run_gives_the_same_gradient(make_problem):
    problem = on_device(make_problem([30000, 10, 5000], [9, 1, 0], classes=20))
    first = gradients_of(problem)
    for _ in range(20):
        for a, b in zip(first, gradients_of(problem), strict=True):
            assert torch.equal(a, b)


def test_opcheck_of_the_gradient_finds_no_fault(make_problem):
    problem = on_device(make_problem([9, 0, 4], [2, 1, 0]))
    for name in LOGITS:
        problem[name].requires_grad_()
    torch.library.opcheck(torch.ops.d2defense.inconsistency.default, tuple(problem.values()))


@pytest.mark.slow
def test_compute_sanitizer_finds_no_fault():
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("compute-sanitizer is not on PATH")
    selection = "agree or empty or strided"
    outcome = subprocess.run(
        [
            *(sanitizer, "--error-exitcode=9", sys.executable, "-m", "pytest", "-q", __file__),
            *("-k", selection, "-p", "no:cacheprovider"),
        ],
        env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stdout[-4000:]
