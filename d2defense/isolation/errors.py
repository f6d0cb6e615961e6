# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a confined process."""

from __future__ import annotations


class IsolationError(RuntimeError):
    """Base of this package's errors."""


class ChildFailedError(IsolationError):
    """The confined process ended without finishing: it crashed, hung or broke a limit.

    The message is one line that says which.
    """


class ServerLostError(IsolationError):
    """The server that confined processes are forked from is gone; another one can be started."""


class IncompleteProtectionError(IsolationError):
    """A protection that was asked for is missing, and nothing was run.

    Attributes:
        missing: one line for each.
    """

    def __init__(self, missing: list[str]) -> None:
        self.missing = missing
        super().__init__(f"this system does not offer every protection: {'; '.join(missing)}")

    def __reduce__(self) -> tuple[type[IncompleteProtectionError], tuple[list[str]]]:
        return type(self), (self.missing,)


class ProtectionError(OSError):
    """The system refuses one means of protection; the message says why."""
