# SPDX-License-Identifier: Apache-2.0
"""Removal methods: one file each, registered in ``REMOVAL_REGISTRY``, which imports them all."""
