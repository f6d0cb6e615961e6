# SPDX-License-Identifier: Apache-2.0
"""Whether a verdict can rest on what a detector shows on the clean images."""

from __future__ import annotations

from dataclasses import dataclass

from d2defense.statistics import Observation

#: A detector that finds less of the objects than this has too little to lose.
LEAST_FOUND = 0.3
#: Where clean detectors were measured on the same images: the least share of what they find.
LEAST_OF_ALLOWED = 0.8
#: The least share of the objects found of any class that must be found as their own class.
LEAST_OWN_CLASS = 0.5
#: The least area under the ROC curve of q between objects and background.
LEAST_RANK = 0.75
#: Fewer images with an object that is found, or fewer such objects, are too little evidence: an
#: attack that takes every fourth object shows on none of ten with a probability of 0.06.
LEAST_IMAGES, LEAST_OBJECTS = 5, 10


@dataclass(frozen=True)
class Ability:
    """What a detector does with the images as they are.

    Attributes:
        num_images: on which it finds an object.
        num_found: objects that it finds.
        found: share of the objects that it finds as of their class, 0..1.
        found_any_class: share that it finds as of whatever class.
        rank: how surely it ranks objects above background, 0..1
            (:func:`d2defense.statistics.object_rank_terms`).
        allowed: share that clean detectors find on the same images; None if that is unknown.
        knows_classes: whether it is known which of its classes the objects are of.
    """

    num_images: int
    num_found: int
    found: float
    found_any_class: float
    rank: float
    allowed: float | None
    knows_classes: bool

    @classmethod
    def of(cls, clean: Observation, allowed: float | None = None) -> Ability:
        """What an observation of images as they are says.

        Args:
            clean: the observation.
            allowed: see above.
        """
        found, any_class = clean.terms["objects_found"], clean.ability["found_any_class"]
        return cls(
            num_images=int((any_class.numerator > 0).sum()),
            num_found=int(any_class.numerator.sum()),
            found=found.ratio(),
            found_any_class=any_class.ratio(),
            rank=clean.ability["object_rank"].ratio(),
            allowed=allowed,
            knows_classes=bool(clean.terms["true_class"].denominator.sum() > 0),
        )

    @property
    def is_weak(self) -> bool:
        """Whether it finds clearly less than these images allow, or than any objects would."""
        allowed = 1.0 if self.allowed is None else self.allowed
        return not self.found_any_class >= LEAST_OF_ALLOWED * allowed

    def obstacle(self) -> str | None:
        """Why no verdict of any kind can rest on it, in one sentence; None if one can."""
        least = LEAST_FOUND if self.allowed is None else LEAST_OF_ALLOWED * self.allowed
        if not self.found_any_class >= min(least, LEAST_FOUND):
            return (
                f"it finds {self.found_any_class:.0%} of the objects on the clean images, too "
                "little to see what a trigger would take: give images of the kind that it was "
                "trained for, at the size and in the colours that it expects"
            )
        if not (self.num_images >= LEAST_IMAGES and self.num_found >= LEAST_OBJECTS):
            return (
                f"too little evidence: objects found: {self.num_found}, on images: "
                f"{self.num_images}; a verdict needs {LEAST_OBJECTS} on {LEAST_IMAGES}: give more "
                "images"
            )
        if not self.rank >= LEAST_RANK:
            return (
                f"its scores hardly tell objects from background on the clean images (area under "
                f"the curve {self.rank:.2f}, {LEAST_RANK} at least), so that a trigger has nothing "
                "to change: give images of the kind that it was trained for"
            )
        return None

    def obstacle_to_clean(self) -> str | None:
        """Why it cannot be called clean, whatever it scores, in one sentence; None if it can."""
        if not self.knows_classes:
            return (
                "which of its classes the objects are of is not known, so whether a trigger "
                "changes classes was not looked at: give a class map (--class-map)"
            )
        if self.found < LEAST_OWN_CLASS * self.found_any_class:
            return (
                f"it finds {self.found_any_class:.0%} of the objects, but only {self.found:.0%} as "
                "of their class: its classes seem to be in another order than the dataset's: give "
                "a class map (--class-map)"
            )
        if self.allowed is not None and self.is_weak:
            return (
                f"it finds {self.found_any_class:.0%} of the objects where clean detectors find "
                f"{self.allowed:.0%} on the same images: it may be blind to what a trigger would "
                "take"
            )
        return None
