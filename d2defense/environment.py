# SPDX-License-Identifier: Apache-2.0
"""Versions that results record."""

from __future__ import annotations

import platform

import detectron2
import numpy
import torch
import torchvision

import d2defense
from d2defense.ops import extension_available


def library_versions() -> dict[str, str]:
    """Versions of Python, d2defense and the libraries that decide on a model's numbers."""
    return {
        "python": platform.python_version(),
        "d2defense": d2defense.__version__,
        "detectron2": detectron2.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
        "operator": "compiled" if extension_available() else "reference",
    }
