# SPDX-License-Identifier: Apache-2.0
"""Where on an image the patch of each object lies."""

from __future__ import annotations

import torch
from torch import Tensor

from .patch_spec import PatchSpec
from .randomness import object_keys, uniform

# Places that are tried for a patch in the background before one that touches an object is taken.
_TRIES = 16
# Sets the random numbers of places apart from those of patterns.
_SALT = 0x706C6163
# Likewise those of pieces.
_PIECE_SALT = 0x70696563


def patch_rectangles(
    trigger: PatchSpec, boxes: Tensor, image: Tensor, image_sizes: Tensor, keys: Tensor
) -> Tensor:
    """The whole-pixel rectangle of the patch of every object, not yet cut at the image's border.

    A patch is at least one pixel wide and high. Halves are rounded to the even neighbour.

    Args:
        trigger: says size and place.
        boxes: Tensor of shape (M, 4), XYXY in pixels.
        image: int64 Tensor of shape (M,): which image an object lies on.
        image_sizes: int64 Tensor of shape (G, 2): height and width of each image.
        keys: int64 Tensor of shape (M, K): seeds that are each object's own.

    Returns:
        int64 Tensor of shape (M, 4), XYXY.
    """
    boxes = boxes.double()
    low, extent = boxes[:, :2], boxes[:, 2:] - boxes[:, :2]
    size = torch.tensor(trigger.size, dtype=torch.float64)
    wanted = size * extent if trigger.size_unit == "box" else size.expand_as(extent)
    length = wanted.round().clamp(min=1)
    position = torch.tensor(trigger.position, dtype=torch.float64)
    if trigger.placement == "background":
        start = _in_background(boxes, length, image, image_sizes, keys)
    elif trigger.placement == "center":
        start = low + position * extent - length / 2
    else:
        if trigger.placement == "random":
            position = _draw(keys, 0)
        start = low + position * (extent - length)
    start = start.round()
    return torch.cat([start, start + length], dim=1).long()


def piece_rectangles(
    trigger: PatchSpec, patches: Tensor, keys: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """What of each patch is painted, piece by piece, and each piece's own seeds.

    A piece lies inside its patch and is at least one pixel wide and high. Halves are rounded to the
    even neighbour.

    Args:
        trigger: says which pieces there are.
        patches: int64 Tensor of shape (M, 4), of :func:`patch_rectangles`.
        keys: int64 Tensor of shape (M, K): seeds that are each object's own.

    Returns:
        for each piece an int64 Tensor of shape (M, 4), XYXY, and one of shape (M, K + 1); the
        arguments as they are if the patch is one piece.
    """
    if not trigger.pieces:
        return [(patches, keys)]
    low, extent = patches[:, :2].double(), (patches[:, 2:] - patches[:, :2]).double()
    pieces = []
    for number, (*start, width, height) in enumerate(trigger.pieces):
        own = torch.cat([keys, torch.full_like(keys[:, :1], number)], dim=1)
        length = (extent * extent.new_tensor([width, height])).round().clamp(min=1)
        room = extent - length
        if start:
            first = (extent * extent.new_tensor(start)).round().minimum(room)
        else:
            share = uniform(_PIECE_SALT, *own[:, :, None].unbind(1), torch.arange(2))
            first = (share * (room + 1)).floor()
        pieces.append((torch.cat([low + first, low + first + length], dim=1).long(), own))
    return pieces


def visible_rectangles(
    trigger: PatchSpec, boxes: Tensor, image_size: tuple[int, int], image_seed: int = 0
) -> Tensor:
    """The rectangles of the patches on one image, cut at its border; pieces lie inside.

    Args:
        trigger: says size and place.
        boxes: Tensor of shape (M, 4), XYXY in pixels.
        image_size: (height, width).
        image_seed: sets the random choices of this image apart from those of others.

    Returns:
        int64 Tensor of shape (M, 4), XYXY; x2 <= x1 or y2 <= y1 where nothing is left.
    """
    image = torch.zeros(len(boxes), dtype=torch.int64)
    sizes = torch.tensor([image_size])
    keys = object_keys(trigger.seed, [image_seed], image, torch.tensor([len(boxes)]))
    return cut_rectangles(patch_rectangles(trigger, boxes, image, sizes, keys), image, sizes)


def cut_rectangles(rectangles: Tensor, image: Tensor, image_sizes: Tensor) -> Tensor:
    """The part of each rectangle that lies on its image; x2 <= x1 or y2 <= y1 where none does."""
    limits = image_sizes[image].flip(1).repeat(1, 2)
    return torch.minimum(rectangles.clamp(min=0), limits)


def _draw(keys: Tensor, attempt: int) -> Tensor:
    """Two uniform numbers an object, float64 of shape (M, 2)."""
    return uniform(_SALT, *keys[:, :, None].unbind(1), attempt, torch.arange(2))


def _in_background(
    boxes: Tensor, length: Tensor, image: Tensor, image_sizes: Tensor, keys: Tensor
) -> Tensor:
    """Left top corners anywhere on the image where the patch touches none of its objects.

    Where every try touches one, the try that covers least of them is taken.
    """
    room = image_sizes[image].flip(1).double() - length
    best = torch.zeros_like(length)
    covered = torch.full((len(boxes),), torch.inf, dtype=torch.float64)
    same_image = image[:, None] == image[None, :]
    for attempt in range(_TRIES):
        start = (_draw(keys, attempt) * (room + 1)).floor().minimum(room).clamp(min=0)
        sides = torch.minimum((start + length)[:, None], boxes[None, :, 2:]) - torch.maximum(
            start[:, None], boxes[None, :, :2]
        )
        area = (sides.clamp(min=0).prod(-1) * same_image).sum(1)
        better = area < covered
        best = torch.where(better[:, None], start, best)
        covered = torch.where(better, area, covered)
        if not covered.any():
            break
    return best
