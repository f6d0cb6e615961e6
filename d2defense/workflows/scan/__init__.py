# SPDX-License-Identifier: Apache-2.0
"""The scan of many checkpoints, in confined processes, into one folder."""

from .driver import scan
from .options import RunOptions, UsageError
from .sources import find_sources

__all__ = ["RunOptions", "UsageError", "find_sources", "scan"]
