# SPDX-License-Identifier: Apache-2.0
"""The tables and figures: one file each, registered in ``EXPERIMENT_REGISTRY``."""
