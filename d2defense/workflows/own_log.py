# SPDX-License-Identifier: Apache-2.0
"""Where a process that works beside others says what would tear their lines."""

from __future__ import annotations

import os


def redirect(path: str | os.PathLike[str], *descriptors: int) -> None:
    """From now on what this process, and its libraries, write to descriptors is added to a file.

    Called first in a process, before it imports what warns.

    Args:
        path: of the file.
        descriptors: 1 for the output, 2 for errors, warnings and progress bars.
    """
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for descriptor in descriptors:
        os.dup2(log, descriptor)
    os.close(log)
