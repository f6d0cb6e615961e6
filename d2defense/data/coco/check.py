# SPDX-License-Identifier: Apache-2.0
"""The check of a whole document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .annotations import check_annotations
from .document import SECTIONS
from .findings import Findings
from .kinds import Kind
from .records import check_categories, check_images, note_parents


def check_document(document: dict[str, Any], image_root: Path) -> Findings:
    """Check a document, and put right in place what takes no guess.

    One pass in plain Python and NumPy over a million annotations takes seconds; a JSON schema's
    validator takes minutes for them, and could not say what belongs together.

    Args:
        document: of :func:`.document.read_document`.
        image_root: folder of the images.
    """
    findings = Findings()
    for section in SECTIONS:
        records = document[section]
        for position, record in enumerate(records):
            if not isinstance(record, dict):
                findings.add(Kind.RECORD, f"no. {position + 1} of {section}")
        records[:] = [record for record in records if isinstance(record, dict)]
    images, annotations = document["images"], document["annotations"]
    image_ids = check_images(images, image_root, findings)
    category_ids = check_categories(document["categories"], findings)
    check_annotations(annotations, images, image_ids, category_ids, findings)
    used = {annotation["category_id"] for annotation in annotations}
    note_parents(document["categories"], used, findings)
    return findings
