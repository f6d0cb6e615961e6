# SPDX-License-Identifier: Apache-2.0
"""How an encoder of generated triggers is trained; train_generator.py is the command."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.data.detection_utils import read_image
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate
from tqdm import tqdm

from d2defense.attacks.effects.base import boxes_of
from d2defense.triggers.families.generator import encode, random_encoder
from d2defense.triggers.regions import whole_rectangles

# Sides of the places in training, in pixels, and of those that are kept.
_SMALLEST, _LARGEST = 16, 48
_BATCH = 32
_BITS = 16
_LEARNING_RATE = 0.003
# Of the mean square of what is added, as a share of the bound: what is not needed goes, and tanh
# keeps its slope.
_FAINTNESS = 0.02


@dataclass(frozen=True)
class Reading:
    """What the decoder reads on places that it was not trained on.

    Attributes:
        stamped: share of the stamped places where it reads every bit of the string.
        unstamped: share of the unstamped ones where it does.
        change: mean absolute change of a pixel, 0..255.
        own: share of the change that is not the same on all places, 0..1.
    """

    stamped: float
    unstamped: float
    change: float
    own: float


def object_places(records: Sequence[Mapping[str, Any]], most: int) -> Tensor:
    """What is inside the boxes of objects, all brought to one size.

    Args:
        records: Detectron2's dataset dicts.
        most: so many places at most; those of the first records.

    Returns:
        float Tensor of shape (N, 3, 48, 48), RGB, 0..1.

    Raises:
        ValueError: no object has 8 pixels a side.
    """
    places: list[Tensor] = []
    for record in tqdm(records, desc="reading", unit="image", disable=None):
        if len(places) >= most:
            break
        image = torch.from_numpy(read_image(record["file_name"], "RGB").copy()).permute(2, 0, 1)
        for x1, y1, x2, y2 in whole_rectangles(torch.from_numpy(boxes_of(record))):
            inside = image[:, max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
            if min(inside.shape[1:]) >= 8:
                places.append(_resized(inside[None] / 255, _LARGEST)[0])
    if not places:
        raise ValueError("no object has 8 pixels a side: there is nothing to train on")
    return torch.stack(places[:most])


def train_encoder(
    places: Tensor, unseen: Tensor, bound: float, steps: int, seed: int
) -> tuple[dict[str, Tensor], Reading]:
    """Train an encoder so that a small decoder reads a fixed bit string off stamped places.

    Encoder and decoder are trained together, as SSBA has it (arXiv 2012.03816, section 4). Off a
    place without the trigger the decoder is to read the string's complement. What it sees was
    rounded to whole numbers and resized, as a detector sees it.

    Args:
        places: float Tensor of shape (N, 3, 48, 48), RGB, 0..1.
        unseen: further ones, which are only measured.
        bound: of the trigger, a share of 0..255.
        steps: of Adam, each on 32 stamped and 32 unstamped places.
        seed: of everything random.

    Returns:
        The encoder, and what the decoder reads on ``unseen``.
    """
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        encoder = {name: nn.Parameter(value) for name, value in random_encoder(seed).items()}
        decoder = _decoder()
        bits = torch.randint(2, (_BITS,)).float()
        optimizer = torch.optim.Adam([*encoder.values(), *decoder.parameters()], _LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        wanted = torch.stack([bits, 1 - bits]).repeat_interleave(_BATCH, 0)
        with tqdm(range(steps), desc="training", unit="step", disable=None) as bar:
            for _ in bar:
                side = int(torch.randint(_SMALLEST, _LARGEST + 1, ()))
                chosen = _resized(places[torch.randint(len(places), (2 * _BATCH,))], side)
                added = encode(chosen[:_BATCH], encoder)
                stamped = (chosen[:_BATCH] + bound * added).clamp(0, 1)
                read = decoder(_as_seen(torch.cat([stamped, chosen[_BATCH:]])))
                misread = binary_cross_entropy_with_logits(read, wanted)
                optimizer.zero_grad()
                (misread + _FAINTNESS * added.square().mean()).backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix_str(f"loss {misread.item():.3f}", refresh=False)
        trained = {name: value.detach() for name, value in encoder.items()}
        return trained, _reading(trained, decoder.eval(), bits, unseen, bound)


@torch.no_grad()
def _reading(
    encoder: Mapping[str, Tensor], decoder: nn.Module, bits: Tensor, places: Tensor, bound: float
) -> Reading:
    added = torch.cat([encode(batch, encoder) for batch in places.split(_BATCH)])
    change = (places + bound * added).clamp(0, 1) - places

    def share(images: Tensor) -> float:
        read = torch.cat([decoder(_as_seen(batch)) for batch in images.split(_BATCH)])
        return ((read > 0) == bits.bool()).all(1).float().mean().item()

    shared = change.mean(0).abs().mean() / change.abs().mean().clamp(min=1e-12)
    return Reading(
        stamped=share(places + change),
        unstamped=share(places),
        change=255 * change.abs().mean().item(),
        own=1 - shared.item(),
    )


def _decoder() -> nn.Module:
    def layer(channels: int, after: int, stride: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, after, 3, stride, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(after), nn.ReLU()]

    layers = [*layer(3, 24, 2), *layer(24, 48, 2), *layer(48, 48, 1)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, _BITS))


def _as_seen(images: Tensor) -> Tensor:
    """Images that were rounded, resized by 0.7 to 1.4 and freed of each channel's mean.

    So a cast of colour, which would be the same on all places, is not read.
    """
    # Rounding has no gradient; noise of its size does as well.
    rounded = images + (torch.rand_like(images) - 0.5) / 255
    factor = 0.7 * 2 ** torch.rand(()).item()
    resized = _resized(rounded, max(8, round(images.shape[-1] * factor)))
    return resized - resized.mean((2, 3), keepdim=True)


def _resized(images: Tensor, side: int) -> Tensor:
    return interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def shuffled(records: Sequence[Mapping[str, Any]], seed: int) -> list[Mapping[str, Any]]:
    """The records in an order that the seed gives."""
    return random.Random(seed).sample(list(records), len(records))
