# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from d2defense.modeling import ProbeOutput
from d2defense.statistics import object_rank_terms


def probe(q: list[float], boxes: list[list[float]], offsets: list[int]) -> ProbeOutput:
    """Proposals with these foreground probabilities."""
    foreground = torch.tensor(q)
    logits = torch.stack([foreground.log(), (1 - foreground).log()], dim=1)
    return ProbeOutput(
        torch.tensor(boxes),
        torch.zeros(len(q)),
        (logits,),
        torch.tensor(offsets),
        [(100, 100)] * (len(offsets) - 1),
    )


def test_rank_is_the_area_under_the_curve_of_objects_and_background():
    """Against scikit-like counting of pairs, by hand, over images of all sorts."""
    rng = np.random.default_rng(0)
    targets = [[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 70.0, 70.0]]
    on = [[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 9.0, 10.0], [50.0, 50.0, 70.0, 69.0]]
    beside = [[20.0 + 3 * i, 20.0, 22.0 + 3 * i, 22.0] for i in range(8)]
    near = [[5.0, 0.0, 15.0, 10.0]]  # IoU of 1/3: neither
    q = rng.uniform(0.05, 0.95, 12).round(1).tolist()
    terms = object_rank_terms(probe(q, [*on, *beside, *near], [0, 12]), [torch.tensor(targets)])
    best = [max(q[0], q[1]), q[2]]
    pairs = [(a > b) + (a == b) / 2 for a in best for b in q[3:11]]
    assert terms.ratio() == pytest.approx(np.mean(pairs))
    assert terms.denominator.tolist() == [2]


def test_an_object_without_a_proposal_ranks_last_and_nothing_counts_for_nothing():
    boxes = [[20.0, 20.0, 30.0, 30.0], [40.0, 40.0, 45.0, 45.0]]
    target = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    both = object_rank_terms(probe([0.1, 0.9], boxes, [0, 1, 2]), [target, torch.zeros(0, 4)])
    assert both.numerator.tolist() == [0, 0]
    assert both.denominator.tolist() == [1, 0]
