# SPDX-License-Identifier: Apache-2.0
"""Effects: one file each, registered in ``EFFECT_REGISTRY``, which imports them all."""
