# SPDX-License-Identifier: Apache-2.0
"""What no clean detector does: reasons not to call one clean that no score shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .survey import Profile

# Foreground that touches no object, a proposal an image: more than this beyond what clean detectors
# show is a flood. Detectors see other things than those that are labelled.
_FLOOD = 10.0
# Share of the objects that the class head sees and that are not detected, at most.
_LOST = 0.3


def odd_behaviour(profile: Profile, found_any_class: float, clean: Sequence[Profile]) -> str | None:
    """Why a detector cannot be called clean whatever it scores, in one sentence; None if it can.

    Args:
        profile: of the detector.
        found_any_class: share of the objects that it finds without a trigger, of whatever class.
        clean: profiles of clean detectors.
    """
    unmatched, allowed = profile.clean["scaled_unmatched"], _most(clean)
    if unmatched > allowed + _FLOOD:
        return (
            f"it sees {unmatched:.0f} objects an image where there is none, clean detectors "
            f"{allowed:.0f} at most: what a trigger makes of that was not looked at"
        )
    promised = profile.clean["scaled_foreground"]
    if promised - found_any_class > _LOST:
        return (
            f"its class head sees {promised:.0%} of the objects on the clean images, but only "
            f"{found_any_class:.0%} of them are detected: its boxes or scores are not what they "
            "seem"
        )
    for trigger, under in profile.triggered.items():
        rise = under["scaled_unmatched"] - unmatched
        usual = _most(clean, trigger)
        if rise > usual + _FLOOD:
            return (
                f"under the trigger {trigger} it sees {rise:.0f} objects an image more where there "
                f"is none, clean detectors {usual:.0f} at most"
            )
    return None


def _most(clean: Iterable[Profile], trigger: str | None = None) -> float:
    """The most unmatched foreground of clean detectors, or its largest rise under a trigger."""
    values = [0.0]
    for profile in clean:
        before = profile.clean["scaled_unmatched"]
        if trigger is None:
            values.append(before)
        elif trigger in profile.triggered:
            values.append(profile.triggered[trigger]["scaled_unmatched"] - before)
    return max(values)
