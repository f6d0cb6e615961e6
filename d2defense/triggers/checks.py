# SPDX-License-Identifier: Apache-2.0
"""What every family asks of the images it is given."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def check_images(images: Tensor, image_format: str) -> None:
    """Check what :meth:`Trigger.apply` is given.

    Raises:
        ValueError: the images have no three colour channels in a known order.
    """
    if image_format not in ("BGR", "RGB") or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(
            f"a trigger needs BGR or RGB images of shape (G, 3, H, W), "
            f"not {image_format} {tuple(images.shape)}"
        )


def is_number(value: Any, low: float, high: float) -> bool:
    """Whether a value is a number, neither NaN nor bool, from ``low`` to ``high``."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high
