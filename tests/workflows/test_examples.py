# SPDX-License-Identifier: Apache-2.0
"""Which images a report shows."""

from __future__ import annotations

from d2defense.checkpoint import build_detector, find_checkpoints
from d2defense.detection import load_clean_images, stamped
from d2defense.statistics import ObservationSettings
from d2defense.triggers import Patch
from d2defense.workflows.examples import most_changed


def test_those_on_which_the_trigger_costs_most_objects(specimen, make_coco_dataset, sign_scenes):
    (source,) = find_checkpoints([specimen("backdoored_1")], only_final=True)
    model, cfg = build_detector(source.weights, source.config)
    images = load_clean_images(make_coco_dataset(sign_scenes(8)).load(), cfg)
    white = Patch("white")

    def detected(pixels) -> int:
        (output,) = model([{"image": pixels}])
        return int((output["instances"].scores >= 0.5).sum())

    lost = [
        detected(image.image) - detected(stamped(image, white, cfg.INPUT.FORMAT))
        for image in images
    ]
    assert max(lost) > min(lost)
    settings = ObservationSettings()
    first, *_ = most_changed(model, images, white, settings, cfg.INPUT.FORMAT, 3)
    assert lost[first] == max(lost)
