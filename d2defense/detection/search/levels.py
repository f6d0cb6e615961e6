# SPDX-License-Identifier: Apache-2.0
"""How thoroughly a search is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .null import SearchNull, shipped_null
from .race import RaceSettings

OFF = "off"
DEFAULT_LEVEL = "standard"
AUTO, ALWAYS = "auto", "always"
#: When a twin is made: where no reference can be used or it takes proof, or in any case, or never.
TWIN_CHOICES = (AUTO, ALWAYS, OFF)
DEFAULT_TWIN_STEPS = 350
#: By the names that ``--search`` takes.
LEVELS: Mapping[str, RaceSettings] = {
    "fast": RaceSettings(
        scout_steps=10,
        targets=1,
        heat_steps=10,
        finalists=2,
        steps=40,
        families=("overlay", "patch"),
    ),
    "standard": RaceSettings(),
    "thorough": RaceSettings(
        scouted=16, scout_steps=20, targets=4, heat_steps=20, finalists=4, steps=120, batch_size=12
    ),
}


@dataclass(frozen=True)
class SearchSettings:
    """Whether and how a scan searches for triggers that its bank does not hold.

    Attributes:
        level: "off", or a name in :data:`LEVELS`.
        always: search also where the bank has found a backdoor.
        twin: when to fine-tune the suspect itself as a reference, one of :data:`TWIN_CHOICES`.
        twin_steps: of this fine-tuning.
        own_null: what searches of clean detectors show; None for the shipped one.

    Raises:
        ValueError: a value outside its range; the message names it.
    """

    level: str = DEFAULT_LEVEL
    always: bool = False
    twin: str = AUTO
    twin_steps: int = DEFAULT_TWIN_STEPS
    own_null: SearchNull | None = None

    def __post_init__(self) -> None:
        if self.level not in (OFF, *LEVELS):
            raise ValueError(f"search {self.level!r} is none of {', '.join((OFF, *LEVELS))}")
        if self.twin not in TWIN_CHOICES:
            raise ValueError(f"twin {self.twin!r} is none of {', '.join(TWIN_CHOICES)}")
        if self.twin_steps < 1:
            raise ValueError(f"twin_steps {self.twin_steps} is not positive")

    @property
    def is_on(self) -> bool:
        """Whether there is a search at all."""
        return self.level != OFF

    @property
    def may_make_twin(self) -> bool:
        """Whether a twin is made if it takes one."""
        return self.is_on and self.twin != OFF

    @property
    def null(self) -> SearchNull:
        """What searches of clean detectors show."""
        return self.own_null or shipped_null()

    @property
    def race(self) -> RaceSettings:
        """How long it takes."""
        return LEVELS[self.level]
