# SPDX-License-Identifier: Apache-2.0
"""Which module groups a trigger moves."""

from __future__ import annotations

from collections.abc import Sequence

# A fall below this is noise; a module moves with the dominant one from this share of its fall on.
MINIMUM_FALL = 0.1
SHARE_OF_LARGEST = 0.5


def dominant_modules(
    objectness_fall: float,
    foreground_fall: float,
    proposal_modules: Sequence[str],
    classification_modules: Sequence[str],
) -> list[str]:
    """Module groups whose outputs move most from clean to triggered images, on the same objects.

    The paper compares the outputs of RPN and R-CNN (arXiv 2409.16057, section 3.4); a strong
    attack silences both, so there can be more than one.

    Args:
        objectness_fall: mean over objects of max p, clean minus triggered: the RPN's move. Of no
            account without modules that it comes from.
        foreground_fall: the same of max q: the R-CNN classification branch's move.
        proposal_modules: the module groups that it comes from
            (:func:`d2defense.modeling.proposal_modules`).
        classification_modules: the module groups of that branch
            (:func:`d2defense.modeling.classification_modules`).

    Returns:
        Names of module groups (see :mod:`d2defense.modeling`); empty where nothing moves.
    """
    falls = {tuple(classification_modules): foreground_fall}
    if proposal_modules:
        falls = {tuple(proposal_modules): objectness_fall, **falls}
    threshold = max(MINIMUM_FALL, SHARE_OF_LARGEST * max(falls.values()))
    return [module for modules, fall in falls.items() if fall >= threshold for module in modules]
