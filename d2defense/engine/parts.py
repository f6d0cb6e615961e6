# SPDX-License-Identifier: Apache-2.0
"""Training steps whose batch goes through the network in as many parts as the memory asks for."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.utils.data import DataLoader

from d2defense.modeling import BatchSize, kept_for_backward

from .randomness import seeded

logger = logging.getLogger(__name__)


class PartwiseTrainer(SimpleTrainer):
    """Detectron2's ``SimpleTrainer``, for batches that may be larger than the memory.

    A batch that fits is one step of ``SimpleTrainer``, bit for bit. Another one goes through in
    parts of like size, whose gradients add up, each part's losses weighted by its share of the
    images; so the RPN's losses and the objective's expectation are those of the whole batch. What
    differs: Detectron2 divides losses of proposals by how many proposals, or foreground ones for
    masks, were sampled, here in a part; images are padded to the largest of their part; batch
    normalization that is not frozen sees a part; and random numbers are drawn in another order.

    How many images fit follows from what the first one keeps for its backward pass. Where memory
    runs out all the same, the step begins anew with parts of half the size.

    Args:
        model: in training mode; returns a dict of losses for a list of images, and is wrapped in
            nothing that shares gradients between processes.
        data_loader: yields lists of training input.
        optimizer: of the model.
    """

    def __init__(
        self, model: nn.Module, data_loader: DataLoader, optimizer: torch.optim.Optimizer
    ) -> None:
        super().__init__(model, data_loader, optimizer)
        self._fit = BatchSize(model, None, kept_for_backward, _state_bytes(optimizer))
        self._measured = False
        self.images_at_once = 0
        """The most images of a step that went through the network together."""

    def run_step(self) -> None:
        """One step of the optimizer."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        data_time = time.perf_counter() - start
        if not self._measured:
            self._fit.measure(_padded(batch[:1]), lambda: self._try_out(batch[:1]))
            self._measured = True
        losses = None
        while losses is None:
            size = self._part_size(batch)
            self.optimizer.zero_grad()
            try:
                losses = self._descend(batch, size)
            except (RuntimeError, MemoryError) as error:
                if not self._fit.halve(size, error):
                    raise
        self.after_backward()
        self._write_metrics(losses, data_time)
        self.optimizer.step()

    def _part_size(self, batch: Sequence[dict[str, Any]]) -> int:
        """How many of the images of a batch go together: parts of like size, the last smaller."""
        fitting = min(len(batch), self._fit.fitting(_padded(batch)))
        parts = -(-len(batch) // fitting)
        return -(-len(batch) // parts)

    def _descend(self, batch: Sequence[dict[str, Any]], size: int) -> dict[str, Tensor]:
        """Gradients of a batch, so many images at a time; the losses of the whole batch."""
        total: dict[str, Tensor] = {}
        for start in range(0, len(batch), size):
            part = batch[start : start + size]
            losses = {
                name: loss * (len(part) / len(batch)) for name, loss in self.model(part).items()
            }
            sum(losses.values()).backward()
            for name, loss in losses.items():
                total[name] = total.get(name, 0) + loss.detach()
        if size > self.images_at_once:
            self.images_at_once = size
            if size < len(batch):
                logger.info("of %d images a step, %d go together", len(batch), size)
        return total

    def _try_out(self, images: list[dict[str, Any]]) -> None:
        """A forward pass that leaves no trace but the memory that it asks for."""
        device = next(self.model.parameters()).device
        buffers = {name: tensor.clone() for name, tensor in self.model.named_buffers()}
        of_gpu = [device] if device.type == "cuda" else []
        # From the second step on, since Detectron2 may draw pictures in the first.
        with seeded(0), torch.random.fork_rng(of_gpu), EventStorage(1):
            self.model(images)
        with torch.no_grad():
            for name, tensor in self.model.named_buffers():
                tensor.copy_(buffers[name])


def _padded(images: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Height and width that the images of a list are padded to, at least."""
    height, width = (
        max(sides) for sides in zip(*(image["image"].shape[-2:] for image in images), strict=True)
    )
    return height, width


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """What gradients and the optimizer's own numbers take once the first step is done."""
    copies = 3 if isinstance(optimizer, torch.optim.AdamW) else 2
    tensors = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    return copies * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
