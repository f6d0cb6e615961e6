# SPDX-License-Identifier: Apache-2.0
"""The page of a screening: which images are suspicious, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .page import data_uri, write_page

_MEANINGS = {
    0: "no image is suspicious",
    1: "an image is suspicious",
    2: "something could not be screened",
    3: "there was nothing to screen",
}


def write_screening_page(
    path: Path, summary: Mapping[str, Any], shown: Sequence[tuple[Mapping[str, Any], bytes]]
) -> Path:
    """Write a self-contained page.

    Args:
        path: of the page.
        summary: ``images``, ``suspicious``, ``unsuspicious``, ``unreadable``, ``error`` and
            ``exit_code``, and what is known of the fit.
        shown: records of suspicious images, and a PNG file of each or b"".
    """
    items = [
        {
            **record,
            "places": [each for each in record["places"] if each["suspicious"]],
            "picture": data_uri(picture) if picture else "",
        }
        for record, picture in shown
    ]
    meaning = _MEANINGS[summary["exit_code"]]
    return write_page(path, "screening.html.j2", summary=summary, items=items, meaning=meaning)
