# SPDX-License-Identifier: Apache-2.0
"""One image as a detector has just seen it: what every screening method starts from."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from detectron2.structures import Instances
from torch import Tensor

from d2defense.modeling import BoxFeatures, InstrumentedDetector, ProbeOutput


@dataclass(frozen=True)
class SeenImage:
    """One image and what the detector's ordinary pass over it has left.

    Attributes:
        image: Tensor of shape (3, H, W), values 0..255, channels in ``INPUT.FORMAT``: the network's
            input. All boxes are XYXY in its pixels.
        boxes: float Tensor of shape (D, 4): detections.
        scores: float Tensor of shape (D,), 0..1.
        classes: int64 Tensor of shape (D,).
        probe: what the detector says of its N proposals.
        features: what it saw of them.
    """

    image: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor
    probe: ProbeOutput
    features: BoxFeatures

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network's input."""
        return self.probe.image_sizes[0]


def see(
    model: InstrumentedDetector, batched_inputs: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[SeenImage]]:
    """Stock inference, and of each image what screening starts from, in one pass.

    Args:
        model: in eval mode.
        batched_inputs: G dicts, as stock inference takes them.

    Returns:
        G dicts of stock inference, and G images.

    Raises:
        RuntimeError: the model is in training mode.
    """
    if not batched_inputs:
        return [], []
    outputs, probe, features = model.listen(batched_inputs)
    counts = probe.proposal_offsets.diff().tolist()
    parts = zip(*(each.split(counts) for each in features), strict=True)
    seen = [
        _seen(each, output["instances"], of_image, BoxFeatures(*part))
        for each, output, of_image, part in zip(
            batched_inputs, outputs, probe.split(), parts, strict=True
        )
    ]
    return outputs, seen


def see_images(
    model: InstrumentedDetector, images: Iterable[Tensor], batch_size: int = 16
) -> Iterator[SeenImage]:
    """Images of one size, (3, H, W) each, as the detector sees them, some at a time."""
    images = iter(images)
    while batch := list(itertools.islice(images, batch_size)):
        yield from see(model, [{"image": image} for image in batch])[1]


def _seen(
    image: Mapping[str, Any], instances: Instances, probe: ProbeOutput, features: BoxFeatures
) -> SeenImage:
    (height, width), (out_height, out_width) = probe.image_sizes[0], instances.image_size
    boxes = instances.pred_boxes.tensor
    scale = boxes.new_tensor([width / out_width, height / out_height]).repeat(2)
    return SeenImage(
        image["image"],
        boxes * scale,
        instances.scores,
        instances.pred_classes,
        probe,
        features,
    )
