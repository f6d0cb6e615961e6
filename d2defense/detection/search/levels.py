# SPDX-License-Identifier: Apache-2.0
"""How thoroughly a search is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .race import RaceSettings

OFF = "off"
DEFAULT_LEVEL = OFF
#: By the names that ``--search`` takes.
LEVELS: Mapping[str, RaceSettings] = {
    "fast": RaceSettings(
        scout_steps=10,
        targets=1,
        heat_steps=10,
        finalists=1,
        steps=40,
        families=("overlay", "patch"),
    ),
    "standard": RaceSettings(),
    "thorough": RaceSettings(
        scout_steps=20, targets=4, heat_steps=20, finalists=4, steps=120, batch_size=12
    ),
}


@dataclass(frozen=True)
class SearchSettings:
    """Whether and how a scan searches for triggers that its bank does not hold.

    Attributes:
        level: "off", or a name in :data:`LEVELS`.
        always: search also where the bank has found a backdoor.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    level: str = DEFAULT_LEVEL
    always: bool = False

    def __post_init__(self) -> None:
        if self.level not in (OFF, *LEVELS):
            raise ValueError(f"search {self.level!r} is none of {', '.join((OFF, *LEVELS))}")

    @property
    def is_on(self) -> bool:
        """Whether there is a search at all."""
        return self.level != OFF

    @property
    def race(self) -> RaceSettings:
        """How long it takes."""
        return LEVELS[self.level]
