# SPDX-License-Identifier: Apache-2.0
"""Reading the picture of a trigger."""

from __future__ import annotations

import functools
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor


@functools.lru_cache(maxsize=32)
def decode_picture(content: bytes) -> Tensor:
    """An image file's content as float32 Tensor of shape (1, 3, H, W), RGB, 0..255.

    Transparency is dropped.

    Raises:
        ValueError: it is not an image.
    """
    try:
        with Image.open(io.BytesIO(content)) as picture:
            pixels = np.array(picture.convert("RGB"), dtype=np.float32)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"not an image: {error}") from None
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()
