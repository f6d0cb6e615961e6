# SPDX-License-Identifier: Apache-2.0
"""What of an image a step looks at: the surroundings of some regions, or all of a small image."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..images import CleanImage

#: Images no larger than this are taken whole; of others a step sees a square of this side.
CROP_SIDE = 352
#: Pixels round a region that its crop holds, too. ``benchmarks/search_crops.py context`` measures
#: how much what a detector says of a region depends on what lies beyond.
CONTEXT = 64
#: Regions of a crop, at most.
CROP_REGIONS = 8
# Crops start at multiples of it, so that cells of feature maps and anchors lie where they lie on
# the whole image: the coarsest maps of FPN have a stride of 64.
_STRIDE = 64


def is_large(shapes: Iterable[tuple[int, int]]) -> bool:
    """Whether images of these heights and widths are looked at in crops."""
    return any(max(shape) > CROP_SIDE for shape in shapes)


@dataclass(frozen=True)
class View:
    """A part of an image, at its scale.

    Attributes:
        image: the part as an image of its own, with the boxes of all of the image's objects.
        places: float Tensor of shape (P, 4), XYXY in pixels of the part: where the trigger goes;
            it may lie outside in part or as a whole.
        regions: float Tensor of shape (R, 4), likewise: what the trigger is to change.
    """

    image: CleanImage
    places: Tensor
    regions: Tensor


def view(
    image: CleanImage,
    places: Tensor,
    regions: Tensor,
    rng: np.random.Generator,
    side: int = CROP_SIDE,
    context: int = CONTEXT,
) -> View | None:
    """The surroundings of one region, drawn at random, with all others that lie in them.

    Scale is kept. A region too large for the context, but not for the crop, gets less of it.

    Args:
        image: to be looked at.
        places: where the trigger goes on it.
        regions: what the trigger is to change.
        rng: of the choice.
        side: of the crop in pixels.
        context: pixels round a region that are wanted.

    Returns:
        all of an image that is no larger than a crop; None where no region fits into a crop.
    """
    size = tuple(image.image.shape[1:])
    if max(size) <= side:
        return View(image, places, regions)
    inside = (regions[:, 2:] - regions[:, :2]).amax(1) <= side - 2 * context - _STRIDE
    if not inside.any():
        context = 0
        inside = (regions[:, 2:] - regions[:, :2]).amax(1) <= side - _STRIDE
    if not inside.any():
        return None
    chosen = regions[int(rng.choice(inside.nonzero().flatten().numpy()))].tolist()
    top, left = (
        _start(chosen[axis], chosen[axis + 2], length, side, context, rng)
        for axis, length in zip((1, 0), size, strict=True)
    )
    whole = cut(image, places, regions, (left, top, left + side, top + side), context)
    taken = rng.permutation(len(whole.regions))[:CROP_REGIONS]
    return replace(whole, regions=whole.regions[torch.from_numpy(np.sort(taken))])


def cut(
    image: CleanImage,
    places: Tensor,
    regions: Tensor,
    window: tuple[int, int, int, int],
    context: int = CONTEXT,
) -> View:
    """A window of an image, with the regions that lie in it and have their context there.

    Args:
        image: to be looked at.
        places: where the trigger goes on it.
        regions: what the trigger is to change.
        window: XYXY in whole pixels; what lies beyond the image is left out.
        context: pixels round a region; none is asked for beyond the image.
    """
    height, width = image.image.shape[1:]
    left, top, right, bottom = window
    right, bottom = min(right, width), min(bottom, height)
    low = torch.tensor([left, top])
    around = regions + torch.tensor([-context, -context, context, context])
    around = around.minimum(around.new_tensor([width, height]).repeat(2)).clamp(min=0)
    held = (around[:, :2] >= low).all(1) & (around[:, 2:] <= torch.tensor([right, bottom])).all(1)
    shift = low.repeat(2)
    part = replace(image, image=image.image[:, top:bottom, left:right], boxes=image.boxes - shift)
    return View(part, places - shift, regions[held] - shift)


def _start(
    low: float, high: float, length: int, side: int, context: int, rng: np.random.Generator
) -> int:
    """First pixel of a crop along one axis, at random among those that hold low..high.

    Args:
        low: first pixel of what the crop is to hold.
        high: last pixel of it.
        length: of the image.
        side: of the crop.
        context: pixels round it.
        rng: of the choice.
    """
    starts = np.arange(0, max(1, length - side + _STRIDE), _STRIDE)
    first, last = max(0.0, low - context), min(float(length), high + context)
    return int(rng.choice(starts[(starts <= first) & (starts + side >= last)]))
