# SPDX-License-Identifier: Apache-2.0
"""Which images go through a network together, by their shapes and by the memory there is."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from d2defense.memory import available_bytes, is_out_of_memory

logger = logging.getLogger(__name__)

T = TypeVar("T")
Shape = tuple[int, int]
#: Counts bytes while its body runs a model, and says how many there were.
Counted = Callable[[nn.Module], AbstractContextManager[Callable[[], int]]]

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

    What one image takes is counted while it goes through alone. From that and from the memory there
    is follows how many images fit. Where the estimate was wrong and memory runs out, the batch is
    halved and tried again.

    Args:
        model: the detector.
        limit: the most images that are wanted at a time; None for as many as fit.
        counted: counts what is held for an image, as :func:`layer_outputs`, which is for inference,
            and :func:`kept_for_backward`, which is for training.
        reserved: bytes of the memory there is that are for something else.

    Attributes:
        used: the largest batch that went through; 0 before the first.
    """

    def __init__(
        self,
        model: nn.Module,
        limit: int | None = None,
        counted: Counted | None = None,
        reserved: int = 0,
    ) -> None:
        self._model = model
        self._limit = sys.maxsize if limit is None else limit
        self._counted = counted or layer_outputs
        self._reserved = reserved
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
            size = min(self.fitting(shape), len(indices) - start)
            part = indices[start : start + size]
            try:
                if self._pixel_bytes is None:
                    done = self._measured(shape, lambda part=part: work(part))
                else:
                    done = work(part)
            except (RuntimeError, MemoryError) as error:
                if not self.halve(size, error):
                    raise
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

    def fitting(self, shape: Shape) -> int:
        """How many images of a shape fit, at least 1; 1 while nothing is measured."""
        if self._pixel_bytes is None:
            return 1
        image_bytes = max(1.0, self._pixel_bytes * shape[0] * shape[1])
        return max(1, min(self._limit, int(self._room / image_bytes)))

    def halve(self, size: int, error: BaseException) -> bool:
        """Take half as many from now on, if ``error`` says that ``size`` images do not fit.

        Returns:
            whether it is worth trying again.
        """
        if size == 1 or not is_out_of_memory(error):
            return False
        self._limit = size // 2
        logger.info("%d images at a time do not fit; trying %d", size, self._limit)
        return True

    def _measured(self, shape: Shape, work: Callable[[], T]) -> T:
        # Asked once: what a batch frees stays with the process and counts as used.
        held = next(self._model.parameters(), None)
        device = torch.device("cpu") if held is None else held.device
        self._room = _SHARE * max(0, available_bytes(device) - self._reserved)
        with self._counted(self._model) as counted:
            done = work()
        self._pixel_bytes = counted() / (shape[0] * shape[1])
        return done


@contextmanager
def layer_outputs(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Count the bytes of the outputs of all layers while the body runs.

    An upper bound of what inference holds at one time, which frees most of them on its way.
    """
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


@contextmanager
def kept_for_backward(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Count the bytes that the body's forward passes keep for a backward pass."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        # Not the tensor itself, which would hold the graph that holds it.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield lambda: sum(kept.values())
