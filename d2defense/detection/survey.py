# SPDX-License-Identifier: Apache-2.0
"""A detector on all images, without a trigger and under each trigger of the bank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import nn

from d2defense.statistics import Observation

from .images import CleanImage
from .observe import observe_batches

if TYPE_CHECKING:
    from .scanner import ScanSettings

Progress = Callable[[], None]
#: Asked after every batch, with its observation without and with each trigger, whether to end.
Watch = Callable[[Observation, Sequence[Observation]], bool]


class Survey(NamedTuple):
    """What was observed of a detector on the same images."""

    clean: Observation
    """On the images as they are."""
    triggered: dict[str, Observation]
    """Under each trigger, by name."""

    @property
    def num_images(self) -> int:
        """How many images were observed."""
        return len(self.clean.terms["tau"].numerator)


def survey(
    model: nn.Module,
    images: Sequence[CleanImage],
    settings: ScanSettings,
    image_format: str,
    progress: Progress | None = None,
    order: Sequence[int] | None = None,
    watch: Watch | None = None,
) -> Survey:
    """Observe a detector under every trigger.

    Images are gone through once, batch by batch; only sums of them are kept.

    Args:
        model: an instrumented detector in eval mode.
        images: clean images.
        settings: of the scan.
        image_format: channel order of the images, "BGR" or "RGB".
        progress: called once more than there are triggers, evenly over the work.
        order: in which to take the images; theirs if None.
        watch: ends the survey after a batch by returning True.
    """
    passes = 1 + len(settings.triggers)
    parts: list[list[Observation]] = []
    told, seen = 0, 0
    batches = observe_batches(
        model, images, (None, *settings.triggers), settings.observation, image_format, order
    )
    for observations in batches:
        parts.append(observations)
        seen += settings.observation.batch_size
        ends = watch is not None and watch(observations[0], observations[1:])
        due = passes if ends else passes * min(seen, len(images)) // len(images)
        for _ in range(due - told if progress else 0):
            progress()
        told = due
        if ends:
            break
    clean, *triggered = (Observation.join(column) for column in zip(*parts, strict=True))
    names = (trigger.name for trigger in settings.triggers)
    return Survey(clean, dict(zip(names, triggered, strict=True)))
