# SPDX-License-Identifier: Apache-2.0
"""Who looks at the files of checkpoints before they are scanned."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from d2defense.checkpoint.confined_inspection import ConfinedInspector
from d2defense.checkpoint.inspection import Inspector, inspect_here
from d2defense.isolation import IncompleteProtectionError, IsolationError, shared_server

from .confined import preload, uses_gpu
from .options import NONE, RunOptions, UsageError


def make_inspector(options: RunOptions, readable: Iterable[Path]) -> Inspector:
    """An inspector that is as confined as the scan.

    Args:
        options: of the scan.
        readable: files and folders that it may read.
    """
    if options.isolation == NONE:
        return inspect_here
    return ConfinedInspector(lambda: shared_server(preload()), options.limits, readable)


def check_protections(options: RunOptions) -> None:
    """Find out, before anything is opened, whether the protections are what is required.

    Args:
        options: of the scan.

    Raises:
        UsageError: one is required and missing on this machine.
    """
    if not options.require_isolation:
        return
    try:
        protections = shared_server(preload()).protections(uses_gpu(None))
    except IsolationError as error:
        raise UsageError(f"the protections cannot be found out: {error}") from None
    if protections["missing"]:
        raise UsageError(str(IncompleteProtectionError(protections["missing"])))
