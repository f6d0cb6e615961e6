# SPDX-License-Identifier: Apache-2.0
"""Patterns of a patch, registered in ``PATTERN_REGISTRY``, which imports all of these files."""
