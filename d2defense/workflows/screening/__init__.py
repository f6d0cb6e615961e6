# SPDX-License-Identifier: Apache-2.0
"""The screening of many images by one checkpoint."""

from .driver import ScreenSummary, screen_images
from .task import ScreenTask

__all__ = ["ScreenSummary", "ScreenTask", "screen_images"]
