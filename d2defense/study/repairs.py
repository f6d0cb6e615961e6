# SPDX-License-Identifier: Apache-2.0
"""The ways to repair that the study compares."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

_PHOTOMETRIC = "REMOVAL.PHOTOMETRIC_DISTORTION"
_FLIP = "INPUT.RANDOM_FLIP"


@dataclass(frozen=True)
class Repair:
    """One way to repair.

    Attributes:
        name: in the names of steps and folders.
        title: in tables.
        method: of ``REMOVAL_REGISTRY``.
        modules: module groups to reset; None for what the scan identifies, or for nothing to
            reset.
        overrides: KEY VALUE pairs of the configuration.
        as_default: with the schedule of ``d2defense repair``; else with the one that a profile has
            for the paper's comparison.
    """

    name: str
    title: str = field(compare=False)
    method: str
    modules: tuple[str, ...] | None = None
    overrides: tuple[Any, ...] = ()
    as_default: bool = False

    @property
    def identified(self) -> bool:
        """Whether a scan says what is reset."""
        return self.method == "renewal" and self.modules is None

    def with_steps(self, steps: int) -> Repair:
        """The same with another number of fine-tuning steps."""
        return replace(
            self,
            name=f"{self.name}_{steps}_steps",
            overrides=(*self.overrides, "REMOVAL.SOLVER.MAX_ITER", steps),
        )


VANILLA = Repair("vanilla", "vanilla", "vanilla")
RENEWAL = Repair("renewal", "renewal (paper)", "renewal")
RENEWAL_WITH_PATCHES = Repair(
    "renewal_patches",
    "renewal + patches",
    "renewal",
    overrides=("REMOVAL.AUGMENTATION", "patch_augmentation"),
)
# What `d2defense repair` does unless told otherwise, and the same without its patches.
OURS = Repair("ours", "patches, no reset (ours)", "patch_augmentation", as_default=True)
FAST_VANILLA = Repair("fast_vanilla", "vanilla, our schedule", "vanilla", as_default=True)
RESET_ALL = Repair("reset_all", "reset all", "reset_all")
FINE_PRUNING = Repair("fine_pruning", "fine-pruning", "fine_pruning")
NAD = Repair("nad", "NAD", "nad")

# Table 2's rows; the other baselines take longer and say less, so fewer seeds do.
COMPARED = (VANILLA, RENEWAL, OURS)
BASELINES = (FINE_PRUNING, NAD, RESET_ALL)

# Table 3's rows: what each augmentation adds.
PLAIN_RENEWAL = Repair(
    "renewal_plain",
    "renewal",
    "renewal",
    overrides=(_PHOTOMETRIC, False, _FLIP, "none"),
)
PHOTOMETRIC_RENEWAL = Repair(
    "renewal_photometric",
    "+ photometric distortion",
    "renewal",
    overrides=(_FLIP, "none"),
)


def resetting(modules: tuple[str, ...]) -> Repair:
    """The paper's renewal of a given set of module groups."""
    name = "renewal_" + "_and_".join(modules)
    return replace(RENEWAL, name=name, title=", ".join(modules), modules=modules)
