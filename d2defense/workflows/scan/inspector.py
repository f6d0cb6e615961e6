# SPDX-License-Identifier: Apache-2.0
"""Who looks at the files of checkpoints before they are scanned."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from d2defense.checkpoint.confined_inspection import ConfinedInspector
from d2defense.checkpoint.inspection import Inspector, inspect_here
from d2defense.isolation import shared_server

from .confined import preload
from .options import NONE, RunOptions


def make_inspector(options: RunOptions, readable: Iterable[Path]) -> Inspector:
    """An inspector that is as confined as the scan.

    Args:
        options: of the scan.
        readable: files and folders that it may read.
    """
    if options.isolation == NONE:
        return inspect_here
    return ConfinedInspector(lambda: shared_server(preload()), options.limits, readable)
