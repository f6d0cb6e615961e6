# SPDX-License-Identifier: Apache-2.0
"""Which device a model runs on."""

from __future__ import annotations

import torch


def resolve_device(name: str) -> str:
    """``name``, or "cpu" where it names a GPU that is not there.

    Detectron2's configs say "cuda" by default, also those that only ever ran on a CPU.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        return "cpu"
    return name
