# SPDX-License-Identifier: Apache-2.0
"""Placements: one file each, registered in ``PLACEMENT_REGISTRY``, which imports them all."""
