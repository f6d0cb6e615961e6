# SPDX-License-Identifier: Apache-2.0
"""Telling, in production, that an image carries a trigger."""

from .guard import SUSPICION, Guard
from .methods.base import ImageLook, ScreeningMethod
from .null import FitError, ScoreNull
from .passes import SeenImage, see
from .screen import Screen, Suspicion, build_method

__all__ = [
    "SUSPICION",
    "FitError",
    "Guard",
    "ImageLook",
    "ScoreNull",
    "Screen",
    "ScreeningMethod",
    "SeenImage",
    "Suspicion",
    "build_method",
    "see",
]
