# SPDX-License-Identifier: Apache-2.0
"""The trigger bank: plain patches that need no knowledge of the attack."""

from __future__ import annotations

from collections.abc import Sequence

from d2defense.attacks import Trigger

DEFAULT_BANK: tuple[Trigger, ...] = (
    Trigger("white", color=(255, 255, 255)),
    Trigger("black", color=(0, 0, 0)),
    Trigger("grey", color=(128, 128, 128)),
    Trigger("random_color", pattern="random_color"),
    Trigger("noise", pattern="noise"),
)


def select_triggers(names: Sequence[str] = ()) -> tuple[Trigger, ...]:
    """The triggers of the default bank with these names; all of them for no names.

    Raises:
        ValueError: a name that the bank does not have.
    """
    bank = {trigger.name: trigger for trigger in DEFAULT_BANK}
    unknown = [name for name in names if name not in bank]
    if unknown:
        raise ValueError(f"no trigger {', '.join(unknown)} in the bank; it has {', '.join(bank)}")
    return tuple(bank[name] for name in names) if names else DEFAULT_BANK
