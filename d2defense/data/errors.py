# SPDX-License-Identifier: Apache-2.0
"""The error of everything that is wrong with a dataset."""

from __future__ import annotations


class DatasetError(ValueError):
    """A dataset that cannot be used; the message is one line that names it and the reason."""
