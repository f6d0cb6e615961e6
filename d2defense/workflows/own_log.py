# SPDX-License-Identifier: Apache-2.0
"""Where a process that works beside others says what would tear their lines."""

from __future__ import annotations

import os


def redirect_stderr(path: str) -> None:
    """From now on bars and warnings of this process are added to a file.

    Called first in a process, before it imports what warns.

    Args:
        path: of the file.
    """
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 2)
    os.close(log)
