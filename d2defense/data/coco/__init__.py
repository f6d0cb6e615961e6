# SPDX-License-Identifier: Apache-2.0
"""Data in COCO's format: read once, checked up front, put right where that takes no guess.

Files come out of many tools and scripts. :func:`register_coco_dataset` reads one, lists what is
wrong with it (:mod:`.kinds` is the list of all that is looked for), and registers it with
Detectron2; where something was put right, a corrected copy from the cache takes the file's place,
so that Detectron2's loader and COCO's evaluation see the same records.
"""

from .findings import Finding, Findings
from .kinds import Kind, Outcome
from .register import FindingsError, leave_out_images, register_coco_dataset

__all__ = [
    "Finding",
    "Findings",
    "FindingsError",
    "Kind",
    "Outcome",
    "leave_out_images",
    "register_coco_dataset",
]
