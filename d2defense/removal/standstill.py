# SPDX-License-Identifier: Apache-2.0
"""Asking a detector that is trained without its being changed by the question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextmanager
def standing_still(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, its parameters without gradient; afterwards as it was before."""
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    modes = {module: module.training for module in model.modules()}
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learns:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Batch normalisation goes by the statistics that it has, and learns none, as in inference."""
    norms = [each for each in model.modules() if isinstance(each, _BatchNorm) and each.training]
    for each in norms:
        each.eval()
    try:
        yield
    finally:
        for each in norms:
            each.train()
