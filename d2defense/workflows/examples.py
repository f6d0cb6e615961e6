# SPDX-License-Identifier: Apache-2.0
"""Images with what a detector says of them, for the figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

from d2defense.detection import CleanImage, observe, stamped
from d2defense.detection.search import SearchOutcome
from d2defense.ops import foreground, objectness
from d2defense.report.examples import Example
from d2defense.statistics import ObservationSettings
from d2defense.triggers import Trigger

# Detections below this score are left out of the pictures, as they are from "objects found".
DRAWN_SCORE = 0.5
# Images that are looked at for those to show.
_CANDIDATES = 16


def make_example(
    model: nn.Module,
    image: CleanImage,
    trigger: Trigger | None,
    image_format: str,
    class_names: Sequence[str],
    places: Tensor | None = None,
    score: float = DRAWN_SCORE,
) -> Example:
    """Probe one image, with ``trigger`` on every object if one is given.

    Args:
        model: an instrumented detector in eval mode.
        image: a clean image.
        trigger: or None.
        image_format: channel order of the image, "BGR" or "RGB".
        class_names: of the detector's classes; classes beyond them are shown by number.
        places: that bear the trigger; every object if None.
        score: of the least detection that is drawn.
    """
    pixels = stamped(image, trigger, image_format, places)
    output = model.probe([{"image": pixels}], with_detections=True)
    detections = output.detections[0].to("cpu")
    detections = detections[detections.scores >= score]
    q = foreground(output.class_logits).cpu().numpy()
    rgb = pixels.flip(0) if image_format == "BGR" else pixels
    return Example(
        image=rgb.permute(1, 2, 0).contiguous().numpy(),
        target_boxes=image.boxes.numpy(),
        proposal_boxes=output.proposal_boxes.cpu().numpy(),
        objectness=q if output.objectness_logits is None else _p(output.objectness_logits),
        foreground=q,
        detection_boxes=detections.pred_boxes.tensor.numpy(),
        detection_scores=detections.scores.numpy(),
        detection_classes=[
            class_names[index] if index < len(class_names) else str(index)
            for index in detections.pred_classes.tolist()
        ],
    )


def _p(logits: Tensor) -> np.ndarray:
    return objectness(logits).cpu().numpy()


def example_pairs(
    model: nn.Module,
    images: Sequence[CleanImage],
    trigger: Trigger,
    image_format: str,
    class_names: Sequence[str],
) -> list[tuple[Example, Example]]:
    """(clean, triggered) examples of each image."""
    return [
        (
            make_example(model, image, None, image_format, class_names),
            make_example(model, image, trigger, image_format, class_names),
        )
        for image in images
    ]


def most_changed(
    model: nn.Module,
    images: Sequence[CleanImage],
    trigger: Trigger,
    settings: ObservationSettings,
    image_format: str,
    count: int,
) -> list[int]:
    """Indices of the images on which a trigger on every object does most, of the first ones.

    Args:
        model: an instrumented detector in eval mode.
        images: clean images, of which at most 16 are looked at.
        trigger: put on every object.
        settings: of the statistics.
        image_format: channel order of the images, "BGR" or "RGB".
        count: of the indices.
    """

    def lost(image: CleanImage) -> float:
        clean, triggered = (
            observe(model, [image], each, settings, image_format).terms for each in (None, trigger)
        )
        return sum(
            float((clean[name].numerator - triggered[name].numerator).sum())
            for name in ("objects_found", "max_foreground", "true_class")
        )

    losses = [lost(images[index]) for index in range(min(_CANDIDATES, len(images)))]
    return sorted(range(len(losses)), key=lambda index: -losses[index])[:count]


def found_examples(
    model: nn.Module,
    images: Sequence[CleanImage],
    outcome: SearchOutcome,
    image_format: str,
    class_names: Sequence[str],
    count: int,
) -> list[tuple[Example, Example]]:
    """(clean, triggered) examples of the images on which a found trigger does most.

    Args:
        model: an instrumented detector in eval mode.
        images: those that the search measured on.
        outcome: of a search that measured something.
        image_format: channel order of the images, "BGR" or "RGB".
        class_names: of the detector's classes.
        count: of the pairs.
    """
    worst, point = outcome.telling, outcome.operating_point
    images = worst.arm.goal.scenes(images)
    order = sorted(range(len(images)), key=lambda index: -worst.hits[index])[:count]
    return [
        (
            make_example(model, images[index], None, image_format, class_names, score=point),
            make_example(
                model,
                images[index],
                worst.trigger,
                image_format,
                class_names,
                worst.arm.goal.places(images[index], outcome.seed),
                point,
            ),
        )
        for index in order
    ]
