# SPDX-License-Identifier: Apache-2.0
"""Which device a model runs on."""

from __future__ import annotations

import logging

import torch

logger = logging.getLogger(__name__)


def resolve_device(name: str) -> str:
    """``name``, or "cpu" with a logged notice where it names a GPU that is not there.

    Detectron2's configs say "cuda" by default, also those that only ever ran on a CPU.
    """
    if name.startswith("cuda") and not torch.cuda.is_available():
        logger.info("no GPU is available: running on the CPU")
        return "cpu"
    return name
