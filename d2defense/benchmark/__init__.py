# SPDX-License-Identifier: Apache-2.0
"""Detectors by the dozen, methods side by side on them, and what comes out as a leaderboard."""
