# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from d2defense.ops import InconsistencyResult, inconsistency


@pytest.mark.parametrize(("proposals", "targets", "bins"), [([9, 0, 4], [2, 1, 0], 3), ([], [], 0)])
def test_a_result_comes_to_the_cpu_field_by_field_in_one_copy(
    make_problem, proposals, targets, bins
):
    result = inconsistency(**make_problem(proposals, targets), num_bins=bins)
    copied = result.to_cpu()
    assert isinstance(copied, InconsistencyResult)
    for name, copy, original in zip(result._fields, copied, result, strict=True):
        assert (copy.dtype, copy.shape) == (original.dtype, original.shape), name
        assert copy.numpy().tobytes() == original.numpy().tobytes(), name


def test_a_result_on_the_cpu_has_no_gradient(make_problem):
    result = inconsistency(**make_problem([9], [1]))
    tracked = result._replace(tau_sum=torch.ones(1, dtype=torch.float64, requires_grad=True))
    assert not any(tensor.requires_grad for tensor in tracked.to_cpu())
