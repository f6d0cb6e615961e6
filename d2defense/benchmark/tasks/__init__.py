# SPDX-License-Identifier: Apache-2.0
"""Tasks: one file each, registered in ``TASK_REGISTRY``, which imports them all."""
