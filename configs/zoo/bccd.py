# SPDX-License-Identifier: Apache-2.0
"""Photos of blood cells as the datasets ``bccd_train``, ``bccd_val`` and ``bccd_test``.

``$DETECTRON2_DATASETS/bccd`` has ``images/`` and ``annotations/{train,val,test}.json``. A module
like this one makes any data of one's own a name for manifests and commands (``--import``).
"""

import os
from pathlib import Path

from detectron2.data.datasets import register_coco_instances

ROOT = Path(os.getenv("DETECTRON2_DATASETS", "datasets")) / "bccd"

for part in ("train", "val", "test"):
    annotations = ROOT / "annotations" / f"{part}.json"
    register_coco_instances(f"bccd_{part}", {}, str(annotations), str(ROOT / "images"))
