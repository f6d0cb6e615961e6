# SPDX-License-Identifier: Apache-2.0
"""``synth_signs``: traffic signs in street scenes, drawn by code, so that nothing is downloaded."""
