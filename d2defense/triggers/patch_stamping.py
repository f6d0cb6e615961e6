# SPDX-License-Identifier: Apache-2.0
"""Stamping: the patches of all objects of a batch of images, as tensor operations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from d2defense.registry import PATTERN_REGISTRY

from .checks import check_images
from .patch_places import cut_rectangles, patch_rectangles, piece_rectangles
from .patch_spec import PatchSpec
from .patterns.base import PatchPixels, Pattern
from .randomness import object_keys


def stamp_batch_(
    trigger: PatchSpec,
    images: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    boxes: Sequence[Tensor],
    image_seeds: Sequence[int],
    image_format: str = "BGR",
    tensors: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Put the patch, piece by piece, on every box of every image of a batch, in place.

    The places are computed on the CPU, from a few numbers an object; the pixels on the device of
    the images, all at once. Where patches overlap, that of the later object lies on top.

    Args:
        trigger: the patch.
        images: uint8 or float Tensor of shape (G, 3, H, W), values 0..255; smaller images lie in
            the top left corner.
        image_sizes: G pairs (height, width), the part of each that is its image.
        boxes: G Tensors of shape (M_g, 4), XYXY in pixels.
        image_seeds: G numbers that set the random choices of one image apart from the others'.
        image_format: order of the channels, "BGR" or "RGB" (``INPUT.FORMAT``).
        tensors: take the place of those of the pattern that they name.

    Returns:
        ``images``.

    Raises:
        ValueError: the images have no three colour channels in a known order.
    """
    check_images(images, image_format)
    own = {name: tensor.to(images) for name, tensor in (tensors or {}).items()}
    pattern = PATTERN_REGISTRY.get(trigger.pattern)(trigger, own)
    counts = torch.tensor([len(each) for each in boxes])
    if not int(counts.sum()):
        return images
    image = torch.repeat_interleave(torch.arange(len(counts)), counts)
    sizes = torch.tensor(list(image_sizes), dtype=torch.int64)
    keys = object_keys(trigger.seed, image_seeds, image, counts)
    joined = torch.cat([each.cpu() for each in boxes])
    patches = patch_rectangles(trigger, joined, image, sizes, keys)
    visible = cut_rectangles(patches, image, sizes)
    for layer in _layers(image, visible):
        for pieces, seeds in piece_rectangles(trigger, patches[layer], keys[layer]):
            parts = image[layer], pieces, cut_rectangles(pieces, image[layer], sizes), seeds
            shown = (parts[2][:, 2:] > parts[2][:, :2]).all(1)
            if shown.any():
                _stamp_layer_(pattern, images, *(part[shown] for part in parts), image_format)
    return images


def _layers(image: Tensor, visible: Tensor) -> list[Tensor]:
    """Indices of the objects in groups without overlap, to be stamped one after another.

    An object lies in the layer above the highest earlier one that it overlaps, so that stamping
    layer by layer gives what stamping object by object does.
    """
    low, high = visible[:, :2], visible[:, 2:]
    meet = (torch.minimum(high[:, None], high) > torch.maximum(low[:, None], low)).all(-1)
    below = (meet & (image[:, None] == image)).tril(-1)
    level = [0] * len(image)
    for index in below.any(1).nonzero().flatten().tolist():
        level[index] = 1 + max(level[other] for other in below[index].nonzero().flatten().tolist())
    levels = torch.tensor(level)
    return [(levels == number).nonzero().flatten() for number in range(int(levels.max()) + 1)]


def _stamp_layer_(
    pattern: Pattern,
    images: Tensor,
    image: Tensor,
    patches: Tensor,
    visible: Tensor,
    keys: Tensor,
    image_format: str,
) -> None:
    device = images.device
    image, patches, visible, keys = (t.to(device) for t in (image, patches, visible, keys))
    sides = visible[:, 2:] - visible[:, :2]
    areas = sides.prod(1)
    owner = torch.repeat_interleave(torch.arange(len(areas), device=device), areas)
    offset = torch.arange(len(owner), device=device) - (areas.cumsum(0) - areas)[owner]
    width = sides[owner, 0]
    x = visible[owner, 0] + offset % width
    y = visible[owner, 1] + offset // width
    lengths = patches[:, 2:] - patches[:, :2]
    pixels = PatchPixels(owner, x - patches[owner, 0], y - patches[owner, 1], lengths, keys)
    covered = pattern.covers(pixels)
    if covered is not None:
        owner, x, y = owner[covered], x[covered], y[covered]
        pixels = PatchPixels(owner, pixels.x[covered], pixels.y[covered], lengths, keys)
    colors, opacity = pattern.paint(pixels), pattern.trigger.opacity
    if image_format == "BGR":
        colors = colors.flip(1)
    place = (image[owner], slice(None), y, x)
    if images.is_floating_point():
        images[place] = opacity * colors + (1 - opacity) * images[place]
        return
    blended = opacity * colors + (1 - opacity) * images[place].float()
    images[place] = blended.round().to(images.dtype)
