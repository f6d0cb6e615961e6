# SPDX-License-Identifier: Apache-2.0
"""Attacks: one file each, registered in ``ATTACK_REGISTRY``, which imports them all."""
