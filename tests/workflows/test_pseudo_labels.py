# SPDX-License-Identifier: Apache-2.0
"""A detector's own detections as labels."""

from __future__ import annotations

import json

import numpy as np
import torch
from detectron2.data.datasets import load_coco_json
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask

from d2defense.workflows.pseudo_labels import _annotations


def test_detections_come_back_as_they_were_where_labels_are_read(tmp_path):
    rng = np.random.default_rng(0)
    masks = torch.from_numpy(rng.random((3, 20, 30)) < 0.5)
    found = Instances(
        (20, 30),
        pred_boxes=Boxes(torch.tensor([[1.5, 2, 9, 8], [3, 3, 3, 7], [0, 1, 30, 19.5]])),
        scores=torch.tensor([0.9, 0.8, 0.5]),
        pred_classes=torch.tensor([1, 0, 0]),
        pred_masks=masks,
        pred_keypoints=torch.from_numpy(rng.uniform(0, 20, (3, 2, 3))).float(),
    )
    rest = Instances(found.image_size, **{**found.get_fields(), "scores": torch.full((3,), 0.49)})
    points = found.pred_keypoints.clone()
    annotations = [item | {"id": number} for number, item in enumerate(_annotations(found, 7), 1)]
    assert not list(_annotations(rest, 7))
    document = {
        "images": [{"id": 7, "file_name": "a.png", "height": 20, "width": 30}],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(document))
    (record,) = load_coco_json(str(path), str(tmp_path), extra_annotation_keys=["area"])
    # The second box is empty.
    for item, index in zip(record["annotations"], (0, 2), strict=True):
        x1, y1, x2, y2 = found.pred_boxes.tensor[index].tolist()
        assert item["bbox"] == [x1, y1, x2 - x1, y2 - y1]
        assert item["area"] == (x2 - x1) * (y2 - y1)
        np.testing.assert_array_equal(coco_mask.decode(item["segmentation"]), masks[index])
        keypoints = np.reshape(item["keypoints"], (2, 3))
        np.testing.assert_allclose(keypoints[:, :2], points[index, :, :2], rtol=1e-6)
        assert (keypoints[:, 2] == 2).all()
    assert [item["category_id"] for item in annotations] == [2, 1]
