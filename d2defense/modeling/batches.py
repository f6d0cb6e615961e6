# SPDX-License-Identifier: Apache-2.0
"""Which images go through a network together, by their shapes and by the memory there is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor, nn

from d2defense.memory import available_bytes, is_out_of_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")
Shape = tuple[int, int]

# Of the memory there is, what the layers' outputs may take: the rest is for what is not counted,
# such as buffers of the convolutions.
_SHARE = 0.8


def alike(shapes: Sequence[Shape], divisor: int) -> list[list[int]]:
    """Indices of images by the size that the network pads them to, both in their order.

    Only images of one padded size go through the network together, so that what it says of an
    image does not depend on which others were at hand, nor on how many fit into the memory.

    Args:
        shapes: height and width of each image.
        divisor: the network pads both to a multiple of it.
    """
    groups: dict[Shape, list[int]] = {}
    for index, (height, width) in enumerate(shapes):
        padded = (-(-height // divisor) * divisor, -(-width // divisor) * divisor)
        groups.setdefault(padded, []).append(index)
    return list(groups.values())


class BatchSize:
    """How many images at a time a detector can take.

    The first image goes alone, and the outputs of all layers are counted: an upper bound of what
    inference holds at one time, which frees most of them on its way. From that and from the memory
    there is follows how many images fit. Where the estimate was wrong and memory runs out, the
    batch is halved and tried again.

    Args:
        model: the detector.
        limit: the most images that are wanted at a time; None for as many as fit.

    Attributes:
        used: the largest batch that went through; 0 before the first.
    """

    def __init__(self, model: nn.Module, limit: int | None = None) -> None:
        self._model = model
        self._limit = sys.maxsize if limit is None else limit
        self._pixel_bytes: float | None = None
        self._room = 0.0
        self.used = 0

    def run(
        self, indices: Sequence[int], shape: Shape, work: Callable[[Sequence[int]], T]
    ) -> Iterator[T]:
        """Work on images of like shape, as many at a time as fit.

        Args:
            indices: the images.
            shape: height and width of one of them.
            work: called with some of the indices; may be called again with fewer of the same.

        Yields:
            What ``work`` returns, for each batch in order.

        Raises:
            RuntimeError, MemoryError: not even one image fits.
        """
        start = 0
        while start < len(indices):
            size = min(self._fitting(shape), len(indices) - start)
            part = indices[start : start + size]
            try:
                if self._pixel_bytes is None:
                    done = self._measured(shape, lambda part=part: work(part))
                else:
                    done = work(part)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                self._limit = size // 2
                logger.info("%d images at a time do not fit; trying %d", size, self._limit)
                continue
            self.used = max(self.used, size)
            start += size
            yield done

    def measure(self, shape: Shape, work: Callable[[], object]) -> None:
        """Find out how many images fit, unless that is known, by work on one image.

        Args:
            shape: height and width of the image.
            work: sends one image through the model.
        """
        if self._pixel_bytes is None:
            self._measured(shape, work)

    def _measured(self, shape: Shape, work: Callable[[], T]) -> T:
        # Asked once: what a batch frees stays with the process and counts as used.
        self._room = _SHARE * available_bytes(self._model.device)
        with _counted_outputs(self._model) as counted:
            done = work()
        self._pixel_bytes = counted() / (shape[0] * shape[1])
        return done

    def _fitting(self, shape: Shape) -> int:
        if self._pixel_bytes is None:
            return 1
        image_bytes = max(1.0, self._pixel_bytes * shape[0] * shape[1])
        return max(1, min(self._limit, int(self._room / image_bytes)))


@contextmanager
def _counted_outputs(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Count the bytes of the outputs of all layers while the body runs."""
    total = 0

    def count(module: nn.Module, inputs: object, output: object) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    leaves = [module for module in model.modules() if not any(module.children())]
    handles = [module.register_forward_hook(count) for module in leaves]
    try:
        yield lambda: total
    finally:
        for handle in handles:
            handle.remove()
