# SPDX-License-Identifier: Apache-2.0
"""Asking a detector that is trained for gradients to something else than its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


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
