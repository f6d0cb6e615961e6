# SPDX-License-Identifier: Apache-2.0
"""No change at all."""

from __future__ import annotations

from typing import ClassVar

from d2defense.registry import REMOVAL_REGISTRY

from .base import RemovalMethod


@REMOVAL_REGISTRY.register("keep")
class Keep(RemovalMethod):
    """Nothing is changed: for what a scan with a search calls clean, any repair costs AP alone."""

    fine_tunes: ClassVar[bool] = False
