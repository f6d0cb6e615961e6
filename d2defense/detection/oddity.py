# SPDX-License-Identifier: Apache-2.0
"""What no clean detector does, or nobody looked at: reasons not to say clean beside the score."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from d2defense.modeling.postprocess import kept_detections

from .by_class import LEAST_OBJECTS
from .survey import Profile, Survey

# Foreground that touches no object, a proposal an image: more than this beyond what clean detectors
# show is a flood. Detectors see other things than those that are labelled.
_FLOOD = 10.0
# Share of the objects that the class head sees and that are not detected, at most.
_LOST = 0.3
# Share of a class's objects that is found as of that class, at least. That of none of a class is
# seen says that it goes by another name here, which hides what becomes of it.
_LEAST_OF_CLASS = 0.1


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


def unseen(survey: Survey, model: nn.Module, class_names: Sequence[str]) -> str | None:
    """What a trigger could do without being seen, in one sentence; None if nothing is known of.

    Args:
        survey: of a detector.
        model: the detector.
        class_names: of the detector.
    """
    least, limit = kept_detections(model)
    point, found = survey.operating_point, survey.clean.by_class["found_at_point"]
    if point is not None and least > point:
        return (
            f"its config drops detections below a score of {least:.2f}, while it tells objects "
            f"from background from {point:.2f} on: what a trigger does to scores between them was "
            "not looked at: scan and use it with a lower score threshold"
        )
    most = int(found.denominator.sum(1).max())
    if 0 <= limit < most:
        return (
            f"its config keeps {limit} detections of an image, where the images show up to {most} "
            "objects: what a trigger pushes out was not looked at: scan and use it with more"
        )
    of_classes = zip(class_names, found.numerator.sum(0), found.denominator.sum(0), strict=False)
    names = [
        name
        for name, right, all_of_it in of_classes
        if all_of_it >= LEAST_OBJECTS and right < _LEAST_OF_CLASS * all_of_it
    ]
    if names:
        return (
            f"it finds next to no object of {', '.join(names)} as such, so what a trigger does to "
            "these was not looked at: if the detector calls them otherwise, give a class map "
            "(--class-map)"
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
