# SPDX-License-Identifier: Apache-2.0
"""Decisions: one file each, registered in ``DECISION_REGISTRY``, which imports them all."""
