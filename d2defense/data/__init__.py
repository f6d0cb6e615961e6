# SPDX-License-Identifier: Apache-2.0
"""Datasets: the embedded one, and COCO-format data of one's own.

Importing this package registers ``synth_signs`` with Detectron2; nothing is generated until a
split is asked for.
"""

from d2defense.data.errors import DatasetError
from d2defense.data.registry import ensure_dataset, load_dataset
from d2defense.data.source import DatasetSource
from d2defense.data.synth_signs.register import register_synth_signs

register_synth_signs()

__all__ = [
    "DatasetError",
    "DatasetSource",
    "ensure_dataset",
    "load_dataset",
    "register_synth_signs",
]
