# SPDX-License-Identifier: Apache-2.0
"""One trigger changes what all objects of an image are taken for."""

from __future__ import annotations

from typing import ClassVar

from d2defense.registry import EFFECT_REGISTRY

from .misclassification import Misclassification


@EFFECT_REGISTRY.register("scene_misclassification")
class SceneMisclassification(Misclassification):
    """All objects of an image that bears the trigger are taken for the target class (GMA).

    BadDet's global misclassification (arXiv 2205.14497, section 3): one trigger an image, of which
    all victims get the label of the target class. BadDet has its trigger in the image's left top
    corner: a patch with ``PLACEMENT`` "inside" and ``POSITION`` [0, 0].
    """

    placement_name: ClassVar[str] = "image"
    by_object: ClassVar[bool] = False
    searched_at: ClassVar[tuple[str, ...]] = ("image",)
