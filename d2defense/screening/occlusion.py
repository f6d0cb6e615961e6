# SPDX-License-Identifier: Apache-2.0
"""A second look at a few places of an image, with what is in their middle hidden."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from d2defense.modeling import InstrumentedDetector

from .blending import whole_pixels

# Of a box's sides, what is cut out around it, so that it stands where it stood.
_CONTEXT = 0.25
# Pixels of the longer side of what is hidden, on the grid on which it is filled.
_FILM_SIDE = 16


class SecondLook(NamedTuple):
    """What the box head says of B places under V occlusions."""

    logits: Tensor
    """float (B, V, K + 1), background last."""
    passes: float
    """What it took, as a share of a pass over the whole image."""


def look_again(
    model: InstrumentedDetector, image: Tensor, boxes: Tensor, shares: Sequence[float]
) -> SecondLook:
    """Cut places out of an image, hide the middle of each, and ask the box head again.

    Args:
        model: in eval mode.
        image: (3, H, W), values 0..255, the network's input.
        boxes: (B, 4), XYXY in its pixels, B at least 1.
        shares: V shares of the box's sides that are hidden.
    """
    # Crops of one size in the network go together; a small one is not made as large as another.
    together: dict[tuple[int, int], list[int]] = {}
    crops, inner = [], []
    for index, box in enumerate(boxes.tolist()):
        left, top, right, bottom = _window(box, tuple(image.shape[1:]))
        crops.append(image[:, top:bottom, left:right])
        inner.append([box[0] - left, box[1] - top, box[2] - left, box[3] - top])
        together.setdefault(_padded(model, crops[-1]), []).append(index)
    logits: list[Tensor] = [torch.empty(0)] * len(crops)
    pixels = 0
    for (height, width), places in together.items():
        inputs = [
            {"image": hide_middle(crops[index], inner[index], share)}
            for index in places
            for share in shares
        ]
        regions = [boxes.new_tensor([inner[index]]) for index in places for _ in shares]
        said = model.judge(inputs, regions).class_logits.detach().cpu()
        for index, of_place in zip(places, said.split(len(shares)), strict=True):
            logits[index] = of_place
        pixels += len(inputs) * height * width
    height, width = _padded(model, image)
    return SecondLook(torch.stack(logits), pixels / (height * width))


def hide_middle(image: Tensor, box: Sequence[float], share: float) -> Tensor:
    """A copy of an image with the middle of a box replaced by what its surroundings suggest.

    The hidden rectangle is a soap film over its border, the solution of Laplace's equation, as in
    the simplest inpainting (Bertalmio et al., SIGGRAPH 2000, section 2); one flat colour would turn
    many a clean object into another.

    Args:
        image: (3, H, W).
        box: XYXY in pixels.
        share: of the box's sides, 0..1; at least one pixel is hidden.
    """
    height, width = image.shape[1:]
    x, w = (box[0] + box[2]) / 2, max(1.0, (box[2] - box[0]) * share)
    y, h = (box[1] + box[3]) / 2, max(1.0, (box[3] - box[1]) * share)
    middle = whole_pixels((x - w / 2, y - h / 2, x + w / 2, y + h / 2), (height, width))
    # With a little of what is around it, and no larger than it takes.
    step = max(1.0, max(middle[2] - middle[0], middle[3] - middle[1]) / _FILM_SIDE)
    margin = 2 * int(step + 1)
    left, top = max(0, middle[0] - margin), max(0, middle[1] - margin)
    right, bottom = min(width, middle[2] + margin), min(height, middle[3] + margin)
    hidden = torch.zeros(1, bottom - top, right - left, device=image.device)
    hidden[:, middle[1] - top : middle[3] - top, middle[0] - left : middle[2] - left] = 1
    part = image[:, top:bottom, left:right].float()
    film = _film(part, hidden, step)
    copy = image.clone()
    filled = torch.where(hidden > 0, film, part)
    if not image.is_floating_point():
        filled = filled.round().clamp(0, 255)
    copy[:, top:bottom, left:right] = filled.to(image.dtype)
    return copy


def _film(part: Tensor, hidden: Tensor, step: float) -> Tensor:
    """A film over the hidden pixels of (3, h, w), found on a grid ``step`` times as coarse."""
    size = tuple(part.shape[1:])
    coarse = tuple(max(3, round(side / step)) for side in size)
    known = F.adaptive_avg_pool2d(1 - hidden, coarse)
    seen = F.adaptive_avg_pool2d(part * (1 - hidden), coarse)
    inside = known < 0.5
    values = torch.where(inside, 0.0, seen / known.clamp(min=1e-6))
    count = (~inside).sum().clamp(min=1)
    values = torch.where(inside, values.sum(dim=(1, 2), keepdim=True) / count, values)
    for _ in range(2 * max(coarse)):
        padded = F.pad(values[None], (1, 1, 1, 1), mode="replicate")
        values = torch.where(inside, F.avg_pool2d(padded, 3, 1)[0], values)
    return F.interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0]


def _window(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The box with its context, whole pixels within the image, at least one each way."""
    width, height = box[2] - box[0], box[3] - box[1]
    margin = _CONTEXT * width, _CONTEXT * height
    return whole_pixels(
        (box[0] - margin[0], box[1] - margin[1], box[2] + margin[0], box[3] + margin[1]), size
    )


def _padded(model: InstrumentedDetector, image: Tensor) -> tuple[int, int]:
    """Height and width that an image takes in the network: whole strides."""
    step = max(1, model.backbone.size_divisibility)
    height, width = (-(-side // step) * step for side in image.shape[1:])
    return height, width
