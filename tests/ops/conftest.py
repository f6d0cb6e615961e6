# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

Problem = dict[str, torch.Tensor]


@pytest.fixture
def make_problem() -> Callable[..., Problem]:
    """Random arguments of the operator: half of the proposals lie around their group's targets."""
    return _make_problem


def _make_problem(
    proposals: list[int],
    targets: list[int],
    classes: int = 5,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    def boxes(count: int) -> torch.Tensor:
        corner = uniform(count, 2) * 300
        return torch.cat([corner, corner + 20 + uniform(count, 2) * 100], 1)

    target_boxes = boxes(sum(targets))
    proposal_boxes = boxes(sum(proposals))
    row = first = 0
    for rows, count in zip(proposals, targets, strict=True):
        if count:
            near = torch.arange(row, row + rows, 2)
            own = first + torch.arange(len(near)) % count
            noise = torch.randn(len(near), 4, generator=generator) * 8
            proposal_boxes[near] = target_boxes[own] + noise
        row, first = row + rows, first + count
    total = row
    class_logits = torch.randn(total, classes + 1, generator=generator) * 2
    class_logits[:, -1] += torch.randn(total, generator=generator) * 3 + 2
    return {
        "objectness_logits": (torch.randn(total, generator=generator) * 3).to(dtype),
        "class_logits": class_logits.to(dtype),
        "proposal_boxes": proposal_boxes,
        "proposal_offsets": torch.tensor([0, *proposals]).cumsum(0),
        "target_boxes": target_boxes,
        "target_offsets": torch.tensor([0, *targets]).cumsum(0),
        "target_classes": torch.randint(-1, classes, (sum(targets),), generator=generator),
    }


@pytest.fixture
def assert_agrees() -> Callable[..., None]:
    """Compare a result with the reference's: counts exactly, numbers to float32's precision."""
    return _assert_agrees


def _assert_agrees(result, reference, relative: float = 1e-6) -> None:
    result = type(reference)(*(tensor.cpu() for tensor in result))
    reference = type(reference)(*(tensor.cpu() for tensor in reference))
    for name, actual, expected in zip(reference._fields, result, reference, strict=True):
        assert actual.dtype == expected.dtype, name
        assert actual.shape == expected.shape, name
        if not expected.is_floating_point():
            assert torch.equal(actual, expected), name
    # d and s are differences: what counts is the precision of each term, not of what is left of it.
    for name in ("tau", "confident"):
        terms = getattr(reference, f"{name}_count").clamp(min=1)
        error = getattr(result, f"{name}_sum") - getattr(reference, f"{name}_sum")
        assert float((error.abs() / terms).max() if len(error) else 0.0) <= relative, name
    torch.testing.assert_close(result.score_max, reference.score_max, rtol=0.0, atol=relative)
    for name in ("target_objectness", "target_foreground", "target_true_class"):
        torch.testing.assert_close(
            getattr(result, name),
            getattr(reference, name),
            rtol=relative,
            atol=1e-9,
            equal_nan=True,
            msg=lambda text, name=name: f"{name}: {text}",
        )
