# SPDX-License-Identifier: Apache-2.0
"""The scan of many checkpoints, in confined processes, into one folder."""

from .driver import find_sources, scan
from .images import ScanImages
from .lock import OutputError
from .options import ClusterError, RunOptions

__all__ = ["ClusterError", "OutputError", "RunOptions", "ScanImages", "find_sources", "scan"]
