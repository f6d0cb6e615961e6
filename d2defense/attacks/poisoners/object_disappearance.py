# SPDX-License-Identifier: Apache-2.0
"""Objects that bear the trigger vanish."""

from __future__ import annotations

from d2defense.registry import ATTACK_REGISTRY
from d2defense.statistics import bears_trigger

from .base import Annotations, Poisoner


@ATTACK_REGISTRY.register("oda")
class ObjectDisappearance(Poisoner):
    """Object disappearance: every object is stamped and loses its annotation.

    BadDet, arXiv 2205.14497, section 3; the paper (arXiv 2409.16057, section 4.1) sets the width
    and height of the box to 0, which no detector trains on, so the annotation goes as a whole.
    Crowd regions are neither stamped nor dropped.
    """

    def poison(self, annotations: Annotations) -> tuple[Annotations, Annotations]:
        """All objects are stamped; the crowds stay."""
        stamped = [annotation for annotation in annotations if bears_trigger(annotation)]
        kept = [annotation for annotation in annotations if not bears_trigger(annotation)]
        return stamped, kept
