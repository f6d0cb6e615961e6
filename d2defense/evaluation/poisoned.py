# SPDX-License-Identifier: Apache-2.0
"""Triggered images against the labels that the attacker wants."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import COCOEvaluator

from d2defense.attacks import Effect, poisoned_annotations

from .coco import build_coco_evaluator

# Metadata that COCO's files and evaluation are made with.
_KEPT = ("thing_classes", "thing_dataset_id_to_contiguous_id")


def build_poisoned_evaluator(
    cfg: CfgNode, dataset_name: str, tasks: tuple[str, ...], effect: Effect
) -> COCOEvaluator:
    """Detectron2's evaluator of triggered images against :meth:`Effect.wanted`.

    Armory and BadDet (arXiv 2205.14497, section 4) call its AP that of the poisoned labels: high
    where the detector says what the attacker wants, of victims and of everything else.

    Args:
        cfg: the detector's configuration.
        dataset_name: a registered dataset with annotations.
        tasks: of :func:`~.coco.predicted_tasks`.
        effect: of the attack; all its victims are taken.
    """
    records = [
        {**record, "annotations": poisoned_annotations(record, effect)}
        for record in DatasetCatalog.get(dataset_name)
    ]
    known = MetadataCatalog.get(dataset_name).as_dict()
    with _registered(records, {key: known[key] for key in _KEPT if key in known}) as name:
        return build_coco_evaluator(cfg, name, tasks)


@contextmanager
def _registered(records: list[dict[str, Any]], metadata: dict[str, Any]) -> Iterator[str]:
    """The records as a dataset of Detectron2 with a COCO file, for as long as it is read.

    The evaluator keeps what it has read, and the metadata.
    """
    with tempfile.TemporaryDirectory(prefix="d2defense_poisoned_") as folder:
        # A name that nobody else has.
        name, file = folder, Path(folder, "annotations.json")
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(json_file=str(file), **metadata)
        try:
            # Without any label the key is missing, and nothing would be evaluated.
            document = {"annotations": []} | convert_to_coco_dict(name)
            file.write_text(json.dumps(document), encoding="utf-8")
            yield name
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
