# SPDX-License-Identifier: Apache-2.0
"""The operator as PyTorch sees it: schema, tracing, export, the interpreter's lock."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from d2defense.ops import InconsistencyResult, extension_available, inconsistency

pytestmark = pytest.mark.skipif(not extension_available(), reason="d2defense._C is not built")


def same(first, second) -> bool:
    return all(
        torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(first, second, strict=True)
    )


def arguments(problem):
    return tuple(problem.values())


def test_opcheck_finds_no_fault(make_problem):
    operator = torch.ops.d2defense.inconsistency.default
    torch.library.opcheck(operator, arguments(make_problem([9, 0, 4], [2, 1, 0])))
    torch.library.opcheck(
        operator,
        arguments(make_problem([5], [1], dtype=torch.bfloat16)),
        {"topk": 3, "num_bins": 4, "epsilon": 0.2},
    )


def test_tracing_for_a_gpu_takes_offsets_and_classes_on_the_cpu(make_problem):
    problem = make_problem([9, 4], [2, 1])
    with FakeTensorMode() as mode:
        traced = {
            name: torch.empty(tensor.shape, device="cuda")
            if tensor.is_floating_point()
            else mode.from_tensor(tensor)
            for name, tensor in problem.items()
        }
        result = inconsistency(**traced)
    assert {tensor.device.type for tensor in result} == {"cuda"}


def test_compiles_without_a_graph_break(make_problem):
    def program(*tensors):
        result = inconsistency(*tensors, num_bins=4)
        return result.tau_sum / result.tau_count, result

    tensors = arguments(make_problem([30, 11], [2, 1]))
    ratio, result = torch.compile(program, fullgraph=True, backend="aot_eager")(*tensors)
    expected = inconsistency(*tensors, num_bins=4)
    assert isinstance(result, InconsistencyResult)
    assert same(result, expected)
    assert torch.equal(ratio, expected.tau_sum / expected.tau_count)


def test_exports_with_any_number_of_proposals(make_problem):
    class Program(torch.nn.Module):
        def forward(self, *tensors):
            return tuple(inconsistency(*tensors))

    tensors = arguments(make_problem([30, 11], [2, 1]))
    rows = torch.export.Dim("rows", min=2, max=100000)
    shapes = ({0: rows}, {0: rows}, {0: rows}, None, None, None, None)
    program = torch.export.export(Program(), tensors, dynamic_shapes=(shapes,))
    assert "d2defense.inconsistency" in str(program.graph)
    other = arguments(make_problem([200, 34], [2, 1], seed=1))
    assert same(program.module()(*other), inconsistency(*other))


def test_other_threads_run_meanwhile():
    proposals = 3_000_000
    tensors = (
        torch.zeros(1).expand(proposals),
        torch.zeros(1, 81).expand(proposals, -1),
        torch.zeros(proposals, 4),
        torch.tensor([0, proposals]),
        torch.zeros(0, 4),
        torch.tensor([0, 0]),
        torch.zeros(0, dtype=torch.int64),
    )
    started, finished = threading.Event(), threading.Event()

    def work():
        started.set()
        inconsistency(*tensors)
        finished.set()

    worker = threading.Thread(target=work)
    ticks = 0
    worker.start()
    started.wait()
    while not finished.is_set():
        ticks += 1
        time.sleep(0.0005)
    worker.join()
    # With the lock held, at most one tick falls between the start of the thread and of the call.
    assert ticks > 5


def test_without_the_extension_one_warning_announces_the_reference(make_problem, tmp_path):
    torch.save(make_problem([9], [1]), tmp_path / "problem.pt")
    code = """
import sys, warnings
sys.modules["d2defense._C"] = None
import torch
from d2defense.ops import extension_available, inconsistency, inconsistency_reference
problem = torch.load(sys.argv[1])
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    first, second = inconsistency(**problem), inconsistency(**problem)
assert not extension_available()
assert [str(w.message) for w in caught if "d2defense._C" in str(w.message)] == [
    str(caught[0].message)
]
expected = inconsistency_reference(**problem)
assert torch.equal(first.tau_sum, expected.tau_sum)
assert torch.equal(second.tau_sum, expected.tau_sum)
"""
    outcome = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "problem.pt")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
