# SPDX-License-Identifier: Apache-2.0
"""A zoo: clean and backdoored detectors that a manifest describes, trained and measured."""

from .build import build_zoo
from .check import check_zoo
from .entries import ZooEntry, expand
from .export import export_zoo
from .index import ZooDetector, find_detectors
from .manifest import Manifest, ManifestError, load_manifest

__all__ = [
    "Manifest",
    "ManifestError",
    "ZooDetector",
    "ZooEntry",
    "build_zoo",
    "check_zoo",
    "expand",
    "export_zoo",
    "find_detectors",
    "load_manifest",
]
