# SPDX-License-Identifier: Apache-2.0
"""Parts of a detector that a fine-tuning leaves as they are."""

from __future__ import annotations

from torch import nn

_BACKBONE = "backbone."


def freeze_heads(model: nn.Module) -> None:
    """Take the gradient from all but the backbone, which with an FPN includes that.

    What the heads make of features they have learnt from far more images than a repair has; the
    backbone can learn from a few that a trigger changes no feature. Statistics of batch
    normalisation in the heads, where there is any, are taken as before.

    Args:
        model: a detector of any kind that this package instruments.
    """
    for name, parameter in model.named_parameters():
        if not name.startswith(_BACKBONE):
            parameter.requires_grad_(False)
