# SPDX-License-Identifier: Apache-2.0
"""Whole jobs, each from paths to files: what the commands run."""
