# SPDX-License-Identifier: Apache-2.0
"""Scores of any detector on one scale: what an attacker divides or shifts changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from d2defense.attacks import Detections, Objects
from d2defense.detection.scale import LogitScale, lenient_point, on_common_scale, operating_point
from d2defense.modeling import RegionOutput

BOXES = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]])


def detections(*entries: tuple[int, float]) -> Detections:
    """Of boxes by number, of class 1, with scores."""
    rows = [BOXES[index] if index < 2 else torch.tensor([60.0, 60, 70, 70]) for index, _ in entries]
    scores = torch.tensor([score for _, score in entries])
    return Detections(
        torch.stack(rows) if rows else torch.zeros(0, 4),
        torch.ones(len(entries), dtype=torch.int64),
        scores,
    )


class Says:
    """A detector that says the same of every image, on a scale of its own."""

    def __init__(self, divisor: float = 1.0, shift: float = 0.0) -> None:
        self.divisor, self.shift = divisor, shift

    def probe(self, inputs):
        """Two proposals on objects, two beside them."""
        logits = torch.tensor([[6.0, 0, -1], [5.0, 1, -2], [-4.0, -5, 3], [-2.0, -6, 2]])
        logits = logits / self.divisor
        logits[:, -1] += self.shift
        boxes = torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40], [60, 60, 70, 70], [0, 60, 9, 70]])
        return type("Output", (), {
            "class_logits": logits,
            "deployed_logits": logits,
            "objectness_logits": torch.tensor([4.0, 3, -2, -3]) / self.divisor + self.shift,
            "proposal_boxes": boxes,
        })  # fmt: skip


def image():
    return type("Image", (), {"image": torch.zeros(3, 80, 80), "boxes": BOXES})


@pytest.mark.parametrize(("divisor", "shift"), [(30, 0), (1, 7), (1, -7), (15, 3)])
def test_a_divided_and_shifted_detector_looks_like_the_plain_one(divisor, shift):
    outputs = []
    for model in (Says(), Says(divisor, shift)):
        said = model.probe([])
        scaled = LogitScale.of(model, [image()])(
            RegionOutput(said.objectness_logits, said.class_logits)
        )
        outputs.append(scaled)
    torch.testing.assert_close(
        outputs[0].objectness_logits, outputs[1].objectness_logits, rtol=1e-3, atol=1e-3
    )
    ranks = [each.class_logits.softmax(1) for each in outputs]
    torch.testing.assert_close(ranks[0], ranks[1], rtol=1e-3, atol=1e-4)


def test_objects_come_to_lie_above_background():
    said = Says().probe([])
    scaled = LogitScale.of(Says(), [image()])(
        RegionOutput(said.objectness_logits, said.class_logits)
    )
    foreground = 1 - scaled.class_logits.softmax(1)[:, -1]
    assert (foreground[:2] > 0.9).all()
    assert (foreground[2:] < 0.1).all()


def test_a_detector_that_sees_no_difference_is_refused():
    with pytest.raises(ValueError, match="does not tell objects from background"):
        LogitScale.of(Says(divisor=-1), [image()])


def test_the_operating_point_parts_right_detections_from_wrong_ones():
    objects = [Objects(BOXES, torch.tensor([1, 1]))] * 2
    seen = [detections((0, 0.14), (1, 0.13), (2, 0.05)), detections((0, 0.12), (2, 0.11))]
    point = operating_point(objects, seen)
    assert 0.11 < point <= 0.12


def test_the_lenient_point_is_halfway_to_the_lowest_score_that_does_hardly_worse():
    objects = [Objects(BOXES[:1], torch.tensor([1]))] * 50
    wrong = [detections((0, 0.9), (2, score)) for score in (0.6, 0.3)]
    seen = [*wrong, *[detections((0, 0.9))] * 48]
    # At 0.6 one detection of 51 is wrong, at 0.3 one more.
    assert 0.6 < operating_point(objects, seen) <= 0.9 + 1e-6
    middle = np.log([p / (1 - p) for p in (0.3, operating_point(objects, seen))]).mean()
    assert lenient_point(objects, seen) == pytest.approx(1 / (1 + np.exp(-middle)), abs=1e-4)
    flood = [detections((0, 0.9), (2, 0.2), (3, 0.2), (4, 0.2))] * 50
    assert lenient_point(objects, flood) > 0.2


def test_without_detections_the_operating_point_is_the_usual_one():
    nothing = [Objects(BOXES, torch.tensor([1, 1]))], [detections()]
    assert operating_point(*nothing) == 0.5 == pytest.approx(lenient_point(*nothing))


def test_detections_count_from_the_operating_point_on():
    mapped = on_common_scale(detections((0, 0.0), (0, 0.11), (0, 0.12), (1, 0.3), (1, 1.0)), 0.12)
    assert ((mapped.scores >= 0.5) == torch.tensor([False, False, True, True, True])).all()
    assert (mapped.scores.diff() > 0).all()
    assert mapped.scores[[0, -1]].tolist() == [0.0, 1.0]
