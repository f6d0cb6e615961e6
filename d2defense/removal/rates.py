# SPDX-License-Identifier: Apache-2.0
"""Which parts of a detector learn how fast while it is repaired."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

_BACKBONE = "backbone."


def heads(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of all but the backbone, which with an FPN includes that.

    What the heads make of features they have learnt from far more images than a repair has; the
    backbone can learn from a few that a trigger changes no feature.

    Args:
        model: a detector of any kind that this package instruments.
    """
    return [each for name, each in model.named_parameters() if not name.startswith(_BACKBONE)]


def scale_rate(
    optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], factor: float
) -> None:
    """Give some of the parameters a learning rate of their own, in groups of their own.

    Args:
        optimizer: as it was built; what it does not have stays out.
        parameters: those whose rate changes.
        factor: by which their rate is multiplied.
    """
    if factor == 1:
        return
    chosen = {id(parameter) for parameter in parameters}
    for group in list(optimizer.param_groups):
        apart = [each for each in group["params"] if id(each) in chosen]
        if apart:
            group["params"] = [each for each in group["params"] if id(each) not in chosen]
            optimizer.add_param_group(group | {"params": apart, "lr": group["lr"] * factor})
