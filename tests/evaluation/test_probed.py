# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from d2defense.evaluation import ProbedDetector, build_paired_test_loader


def test_outputs_are_the_stock_ones_and_the_probe_of_each_image(
    backdoored, scenes, make_effect, white
):
    model, cfg = backdoored
    probed = ProbedDetector(model)
    effect = make_effect("disappearance")
    for inputs in build_paired_test_loader(cfg, scenes, white, effect, 6):
        outputs = probed(inputs)
        with torch.no_grad():
            expected = model(inputs)
        for image, ours, theirs in zip(inputs, outputs, expected, strict=True):
            assert set(ours) == {"instances", "probe"}
            assert len(theirs["instances"])
            for name, value in theirs["instances"].get_fields().items():
                value, got = (getattr(v, "tensor", v) for v in (value, ours["instances"].get(name)))
                assert torch.equal(got, value)
            alone = model.probe([image])
            probe = ours["probe"]
            assert probe.image_sizes == alone.image_sizes
            assert probe.proposal_offsets.tolist() == [0, len(probe.proposal_boxes)]
            torch.testing.assert_close(probe.class_logits, alone.class_logits, rtol=1e-3, atol=1e-3)


def test_the_detector_s_mode_is_its_own(backdoored):
    model, _ = backdoored
    probed = ProbedDetector(model)
    assert not probed.training
    probed.train()
    assert model.training
    assert ProbedDetector(model).training
    with pytest.raises(RuntimeError, match="eval mode"):
        probed([])


def test_other_detectors_are_refused():
    with pytest.raises(TypeError, match="Linear cannot be probed"):
        ProbedDetector(nn.Linear(2, 2))
