# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from d2defense.ops import (
    InconsistencyResult,
    extension_available,
    foreground,
    inconsistency,
    inconsistency_reference,
    objectness,
)

pytestmark = pytest.mark.skipif(not extension_available(), reason="d2defense._C is not built")

LOGIT_NAMES = ("objectness_logits", "class_logits")
LOGITS = st.one_of(
    st.floats(-30, 30, width=32),
    st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=False),
    st.sampled_from([0.0, -0.0, 1e-30, 88.0, -88.0, 104.0, -104.0, 65504.0]),
)
COORDINATES = st.one_of(st.integers(-3, 12).map(float), st.floats(width=32))


@st.composite
def problems(draw):
    """Small problems, integer boxes (ties of the IoU) and numbers from all over float32."""
    sizes = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=4))
    classes = draw(st.sampled_from([1, 2, 5, 16, 19, 33]))
    dtype = draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16]))
    proposals, targets = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
    # A few drawn numbers, spread by a drawn seed: thousands of draws would take seconds.
    pool = torch.tensor(draw(st.lists(LOGITS, min_size=1, max_size=12)))
    places = torch.tensor(draw(st.lists(COORDINATES, min_size=1, max_size=12)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def choose(values, *shape):
        return values[torch.randint(0, len(values), shape, generator=generator)]

    ordinary = torch.randn(proposals, classes + 1, generator=generator) * 3
    strange = torch.rand(proposals, classes + 1, generator=generator) < draw(
        st.sampled_from([0.0, 0.05, 1.0])
    )
    return {
        "objectness_logits": choose(pool, proposals).to(dtype),
        "class_logits": torch.where(strange, choose(pool, proposals, classes + 1), ordinary).to(
            dtype
        ),
        "proposal_boxes": choose(places, proposals, 4),
        "proposal_offsets": torch.tensor([0, *(size[0] for size in sizes)]).cumsum(0),
        "target_boxes": choose(places, targets, 4),
        "target_offsets": torch.tensor([0, *(size[1] for size in sizes)]).cumsum(0),
        "target_classes": torch.randint(-1, classes, (targets,), generator=generator),
    }


def far_from(values: torch.Tensor, edges: list[float]) -> bool:
    """Whether no finite value lies where float32's rounding could move it across an edge."""
    values = values[values.isfinite()]
    return all(bool(((values - edge).abs() > 1e-6).all()) for edge in edges)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(problem=problems(), topk=st.integers(0, 12), bins=st.sampled_from([0, 1, 4]))
def test_any_input_agrees_with_the_reference(assert_agrees, problem, topk, bins):
    p = objectness(problem["objectness_logits"])
    q = foreground(problem["class_logits"])
    assume(far_from((p - q).abs(), [0.1, 0.25, 0.5, 0.75]))
    assume(far_from(p, [0.8]) and far_from(q, [0.5]))
    options = {"topk": topk, "num_bins": bins}
    tracked = {name: problem[name].requires_grad_() for name in LOGIT_NAMES}
    result = inconsistency(**{**problem, **tracked}, **options)
    exact = {name: problem[name].detach().double().requires_grad_() for name in LOGIT_NAMES}
    reference = inconsistency_reference(**{**problem, **exact}, **options)
    assert_agrees(
        InconsistencyResult(*(tensor.detach() for tensor in result)),
        inconsistency_reference(**{n: t.detach() for n, t in problem.items()}, **options),
    )

    # Maxima are left out: many drawn numbers are equal, but for what float32 makes of them.
    def gradients(outcome, logits):
        total = outcome.tau_sum.sum() - 2 * outcome.confident_sum.sum()
        if not total.requires_grad:
            return [torch.zeros_like(tensor) for tensor in logits.values()]
        return torch.autograd.grad(total, list(logits.values()), materialize_grads=True)

    tolerance = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
    for mine, expected in zip(gradients(result, tracked), gradients(reference, exact), strict=True):
        bound = tolerance[mine.dtype]
        torch.testing.assert_close(mine.double(), expected, rtol=bound, atol=bound)
