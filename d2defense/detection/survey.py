# SPDX-License-Identifier: Apache-2.0
"""A detector on all images, without a trigger and under each trigger of the bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from .images import CleanImage
from .observe import Observation, observe_batches

if TYPE_CHECKING:
    from .scanner import ScanSettings

Progress = Callable[[], None]


class Survey(NamedTuple):
    """What was observed of a detector on the same images."""

    clean: Observation
    """On the images as they are."""
    triggered: dict[str, Observation]
    """Under each trigger, by name."""


def survey(
    model: nn.Module,
    images: Sequence[CleanImage],
    settings: ScanSettings,
    image_format: str,
    progress: Progress | None = None,
) -> Survey:
    """Observe a detector under every trigger; arguments as :func:`.scanner.inspect_detector`.

    Images are gone through once, batch by batch; only sums of them are kept.
    """
    passes = 1 + len(settings.triggers)
    parts: list[list[Observation]] = []
    told, seen = 0, 0
    batches = observe_batches(
        model, images, (None, *settings.triggers), settings.observation, image_format
    )
    for observations in batches:
        parts.append(observations)
        seen += settings.observation.batch_size
        # One call for every trigger's share of the work, whatever the number of batches.
        due = passes * min(seen, len(images)) // len(images)
        for _ in range(due - told if progress else 0):
            progress()
        told = due
    clean, *triggered = (Observation.join(column) for column in zip(*parts, strict=True))
    names = (trigger.name for trigger in settings.triggers)
    return Survey(clean, dict(zip(names, triggered, strict=True)))
