# SPDX-License-Identifier: Apache-2.0
"""Screening methods, one module each."""
