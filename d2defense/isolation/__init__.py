# SPDX-License-Identifier: Apache-2.0
"""Running a function on untrusted files in a process that can do little harm."""

from .errors import (
    ChildFailedError,
    IncompleteProtectionError,
    IsolationError,
    ServerLostError,
)
from .limits import Limits, parse_size
from .server import Run, Server, shared_server

__all__ = [
    "ChildFailedError",
    "IncompleteProtectionError",
    "IsolationError",
    "Limits",
    "Run",
    "Server",
    "ServerLostError",
    "parse_size",
    "shared_server",
]
