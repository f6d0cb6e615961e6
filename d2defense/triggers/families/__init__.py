# SPDX-License-Identifier: Apache-2.0
"""Trigger families: one file each, registered in ``TRIGGER_REGISTRY``, which imports them all."""
