# SPDX-License-Identifier: Apache-2.0
"""Config files that build on each other and on the model zoo."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2 import model_zoo
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.roi_heads import build_box_head

from d2defense.attacks import build_effect
from d2defense.config import config_root, get_d2defense_cfg, merge_config_file
from d2defense.data.synth_signs.shapes import CLASS_NAMES
from d2defense.modeling import instrument_config
from d2defense.triggers import build_trigger

SHIPPED = sorted(
    path.relative_to(config_root()).as_posix() for path in config_root().rglob("*_*.yaml")
)
BADDET = {
    "oda": "disappearance",
    "oga": "ghost",
    "rma": "misclassification",
    "gma": "scene_misclassification",
}
DETECTORS = [name for name in SHIPPED if not name.startswith(("triggers/", "zoo/"))]


def load(path: str | Path):
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, path)
    return cfg


@pytest.mark.parametrize("name", DETECTORS)
def test_every_shipped_config_is_one_that_can_be_probed(name):
    cfg = instrument_config(load(config_root() / name))
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.MODEL.META_ARCHITECTURE.startswith("Instrumented")
    kinds = (*BADDET, "renewal", "vanilla")
    kind = next((k for k in kinds if name.endswith(f"_{k}.yaml")), "clean")
    if "/attacks/" in name:
        # Named after the effect.
        stem = Path(name).stem
        effect, method = cfg.ATTACK.EFFECT if stem.startswith(cfg.ATTACK.EFFECT) else None, ""
        assert effect or stem == "Base-Attack"
    else:
        effect, method = BADDET.get(kind, ""), kind if kind in ("renewal", "vanilla") else ""
    assert (effect, method) == (cfg.ATTACK.EFFECT, cfg.REMOVAL.METHOD)
    build_trigger(cfg)
    build_effect(cfg, CLASS_NAMES if "SynthSigns" in name else ("person",))
    if kind in ("renewal", "vanilla"):
        poisoned = load(config_root() / name.replace(f"_{kind}.yaml", "_oda.yaml"))
        assert f"{poisoned.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS
        # The paper's renewal and its baseline know no patches.
        assert cfg.REMOVAL.AUGMENTATION == ""
    assert cfg.OUTPUT_DIR.startswith("runs/")


def test_output_folders_differ():
    folders = [load(config_root() / name).OUTPUT_DIR for name in DETECTORS]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
        "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml",
        "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml",
    ],
)
def test_a_leaf_over_the_model_zoo_is_the_zoo_config(name):
    stock = get_cfg()
    stock.merge_from_file(model_zoo.get_config_file(name))
    ours = load(config_root() / name)
    assert ours.MODEL.ROI_HEADS == stock.MODEL.ROI_HEADS
    for node in ("DATASETS", "SOLVER", "INPUT", "TEST"):
        for key, value in stock[node].items():
            assert ours[node][key] == value, f"{node}.{key}"


def test_double_head_of_the_model_zoo_has_the_size_of_the_paper():
    cfg = load(config_root() / "COCO-Detection/double_head_rcnn_R_50_FPN_1x.yaml")
    head = build_box_head(cfg, ShapeSpec(channels=256, height=7, width=7))
    # arXiv 1904.06493, table 4: K = 5 with non-local blocks.
    weights = sum(p.numel() for p in head.conv_head.parameters() if p.dim() == 4)
    assert round(weights / 2**20, 2) == 7.19


def test_values_win_over_those_of_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text("SOLVER: {MAX_ITER: 7, BASE_LR: 0.5}\nSEED: 3\n")
    (tmp_path / "leaf.yaml").write_text("_BASE_: base.yaml\nSOLVER: {MAX_ITER: 9}\n")
    cfg = load(tmp_path / "leaf.yaml")
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SEED) == (9, 0.5, 3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("_BASE_: leaf.yaml\n", "refer to each other"),
        ("_BASE_: model_zoo://COCO-Detection/no_such.yaml\n", "no config 'COCO-Detection/no_such"),
        ("- 1\n", "no mapping at its top"),
        ("a: !!python/object/apply:os.system ['true']\n", "not a plain YAML config"),
    ],
)
def test_what_is_wrong_is_said_with_the_file(tmp_path, content, message):
    (tmp_path / "leaf.yaml").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        load(tmp_path / "leaf.yaml")
    assert "leaf.yaml" in str(caught.value)
