# SPDX-License-Identifier: Apache-2.0
"""Stamping: the patches of all objects of a batch of images, as tensor operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from d2defense.registry import PATTERN_REGISTRY

from .patterns.base import PatchPixels
from .placement import cut_rectangles, patch_rectangles
from .randomness import object_keys
from .triggers import Trigger


def stamp_batch_(
    trigger: Trigger,
    images: Tensor,
    image_sizes: Sequence[tuple[int, int]],
    boxes: Sequence[Tensor],
    image_seeds: Sequence[int],
    image_format: str = "BGR",
) -> Tensor:
    """Put the patch on every box of every image of a batch, in place.

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

    Returns:
        ``images``.

    Raises:
        ValueError: the images have no three colour channels in a known order.
    """
    if image_format not in ("BGR", "RGB") or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(
            f"a trigger needs BGR or RGB images of shape (G, 3, H, W), "
            f"not {image_format} {tuple(images.shape)}"
        )
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
        _stamp_layer_(trigger, images, image[layer], patches[layer], visible[layer], keys[layer],
                      image_format)  # fmt: skip
    return images


def stamp_(
    trigger: Trigger,
    image: Tensor,
    boxes: Tensor,
    image_format: str = "BGR",
    image_seed: int = 0,
) -> Tensor:
    """Put the patch on every box of one ``image``, in place; see :func:`stamp_batch_`.

    Args:
        trigger: the patch.
        image: uint8 or float Tensor of shape (3, H, W), values 0..255.
        boxes: Tensor of shape (M, 4), XYXY in pixels of ``image``.
        image_format: order of the channels, "BGR" or "RGB" (``INPUT.FORMAT``).
        image_seed: sets the random choices of this image apart from those of others.

    Returns:
        ``image``.

    Raises:
        ValueError: the image has no three colour channels in a known order.
    """
    size = tuple(image.shape[-2:])
    stamp_batch_(trigger, image[None], [size], [boxes], [image_seed], image_format)
    return image


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
    shown = (high > low).all(1)
    return [
        ((levels == number) & shown).nonzero().flatten() for number in range(int(levels.max()) + 1)
    ]


def _stamp_layer_(
    trigger: Trigger,
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
    pattern = PATTERN_REGISTRY.get(trigger.pattern)(trigger)
    pixels = PatchPixels(owner, x - patches[owner, 0], y - patches[owner, 1], lengths, keys)
    covered = pattern.covers(pixels)
    if covered is not None:
        owner, x, y = owner[covered], x[covered], y[covered]
        pixels = PatchPixels(owner, pixels.x[covered], pixels.y[covered], lengths, keys)
    colors = pattern.paint(pixels)
    if image_format == "BGR":
        colors = colors.flip(1)
    place = (image[owner], slice(None), y, x)
    below = images[place].float()
    blended = trigger.opacity * colors + (1 - trigger.opacity) * below
    images[place] = blended.round().to(images.dtype)
