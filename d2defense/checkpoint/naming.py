# SPDX-License-Identifier: Apache-2.0
"""Names for what was found, which become folders of a scan's output."""

from __future__ import annotations

# Files of a scan's output folder, where each checkpoint gets a folder of its name.
_RESERVED_NAMES = ("report.html", "summary.csv", "summary.json")
_MAX_NAME_BYTES = 120


class UniqueNames:
    """Gives each thing a name of its own; equal ones are told apart by a number."""

    def __init__(self) -> None:
        # Some file systems do not tell cases apart.
        self._taken = {name.casefold() for name in _RESERVED_NAMES}
        self._next: dict[str, int] = {}

    def choose(self, wanted: str) -> str:
        """``wanted`` made safe as the name of a folder, or that with a number."""
        safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in wanted).strip(".")
        # File systems limit names in bytes, and a number may follow.
        safe = safe.encode()[:_MAX_NAME_BYTES].decode(errors="ignore") or "checkpoint"
        name = safe
        # Numbers go on where they ended: to try thousands of equal names each time takes minutes.
        number = self._next.get(safe.casefold(), 2)
        while name.casefold() in self._taken:
            name, number = f"{safe}_{number}", number + 1
        self._next[safe.casefold()] = number
        self._taken.add(name.casefold())
        return name
