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


def computes_bf16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16, so that a network may be faster in it."""
    if device.type == "cuda":
        # Asked of torch by its own function, it counts devices that only emulate them.
        return torch.cuda.get_device_capability(device)[0] >= 8
    # Newer versions of torch tell; of an older one it is not known.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)
