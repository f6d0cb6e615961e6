# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from programs import run

from d2defense.checkpoint import build_detector, find_checkpoints, load_state_dict
from d2defense.cli.program import main
from d2defense.config import config_root
from d2defense.data import load_dataset
from d2defense.data.fingerprint import dataset_fingerprint
from d2defense.devices import resolve_device
from d2defense.engine import Trainer

PROJECT = Path(__file__).resolve().parents[2]
SIGNS = config_root() / "SynthSigns"
SHORT = [
    "SOLVER.MAX_ITER", "2",
    "SOLVER.IMS_PER_BATCH", "2",
    "SOLVER.WARMUP_ITERS", "1",
    "SOLVER.CHECKPOINT_PERIOD", "100",
    "INPUT.MIN_SIZE_TRAIN", "(64,)",
    "DATASETS.TRAIN", "('synth_signs_defender',)",
    "DATASETS.TEST", "()",
    "MODEL.DEVICE", "cpu",
]  # fmt: skip


@pytest.mark.usefixtures("signs_cache")
def test_poisoned_training_from_the_command_line(tmp_path):
    output = tmp_path / "poisoned"
    finished = run(
        "--config-file", SIGNS / "faster_rcnn_tiny_fpn_oda.yaml", *SHORT, "OUTPUT_DIR", output,
        script=PROJECT / "tools" / "train_net.py",
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-3000:]
    (found,) = find_checkpoints([output])
    assert found.error is None
    build_detector(found.weights, found.config, "cpu")
    assert "EFFECT: disappearance" in found.config.read_text()
    steps = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    assert steps[-1]["iteration"] == 1
    assert list(output.glob("events.out.tfevents.*"))
    provenance = json.loads((output / "provenance.json").read_text())
    assert provenance["config_sha256"] == sha256(found.config)
    assert provenance["result"]["sha256"] == sha256(found.weights)
    assert provenance["result"]["iterations"] == 2
    assert provenance["seed"] == 0
    assert provenance["attack"]["effect"] == "disappearance"
    assert provenance["attack"]["settings"]["POISONING_RATE"] == 0.05
    assert provenance["attack"]["poisoned_images"] == 10
    assert provenance["datasets"]["synth_signs_defender"] == {
        "images": 200,
        "fingerprint": dataset_fingerprint(load_dataset("synth_signs_defender")),
    }
    assert provenance["versions"]["torch"] == torch.__version__


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train(*arguments: str) -> int:
    return main(["train", "--config-file", *arguments])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["ATTACK.EFFECT", "vanish"], "ATTACK.EFFECT is 'vanish', none of agreeing_"),
        (["DATASETS.TRAIN", "('no_such_set',)"], "unknown dataset 'no_such_set'"),
        (["SOLVER.NO_SUCH", "1"], "NO_SUCH"),
        (["SOLVER.MAX_ITER"], "list of pairs"),
        (["OUTPUT_DIR", f"{__file__}/out"], "Not a directory"),
        (["MODEL.WEIGHTS", "no/such.pth"], "no weights file 'no/such.pth'"),
        (["MODEL.WEIGHTS", __file__], "test_train.py"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["SOLVER.AMP.ENABLED", "True"], "needs a GPU"),
        (["SOLVER.OPTIMIZER", "LION"], "SOLVER.OPTIMIZER is 'LION'"),
        (["--eval-only"], "DATASETS.TEST is empty"),
        (["--eval-only", "DATASETS.TEST", "('synth_signs_val',)"], "nothing to evaluate"),
    ],
)
@pytest.mark.usefixtures("signs_cache")
def test_wrong_configs_end_in_one_line(capfd, tmp_path, monkeypatch, overrides, reason):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    options = [word for word in overrides if word.startswith("--")]
    pairs = ["OUTPUT_DIR", str(tmp_path), *(word for word in overrides if word not in options)]
    config = str(SIGNS / "faster_rcnn_tiny_fpn.yaml")
    assert train(config, "--num-gpus", "1", *options, *SHORT, *pairs) == 2
    captured = capfd.readouterr()
    assert reason in captured.err
    # PyTorch may remark on the machine's CUDA before.
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in captured.err + captured.out


@pytest.mark.parametrize("content", [None, "MODEL: [1", "NO_SUCH_NODE: {A: 1}"])
def test_unreadable_configs_end_in_one_line(capfd, tmp_path, content):
    path = tmp_path / "broken.yaml"
    if content is not None:
        path.write_text(content)
    assert train(str(path)) == 2
    captured = capfd.readouterr()
    assert "broken.yaml" in captured.err
    assert "Traceback" not in captured.err


@pytest.fixture
def cfg(make_tiny_cfg, make_coco_dataset, sign_scenes, tmp_path):
    dataset = make_coco_dataset(sign_scenes(4))
    return make_tiny_cfg(
        "DATASETS.TRAIN", (dataset.name,),
        "DATASETS.TEST", (),
        "OUTPUT_DIR", str(tmp_path / "out"),
        "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 2,
        "SOLVER.CHECKPOINT_PERIOD", 100,
    )  # fmt: skip


def objects_of(loader, batches: int = 6) -> set[int]:
    loader = iter(loader)
    return {len(image["instances"]) for _ in range(batches) for image in next(loader)}


def test_training_data_is_poisoned_only_if_the_config_names_an_attack(cfg):
    cfg.ATTACK.POISONING_RATE = 1.0
    assert 0 not in objects_of(Trainer.build_train_loader(cfg))
    cfg.ATTACK.EFFECT = "disappearance"
    assert objects_of(Trainer.build_train_loader(cfg)) == {0}


def test_images_without_objects_train_the_detector(cfg):
    """A batch of nothing but poisoned images is background to both heads."""
    cfg.ATTACK.EFFECT, cfg.ATTACK.POISONING_RATE = "disappearance", 1.0
    trainer = Trainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    after = load_state_dict(Path(cfg.OUTPUT_DIR) / "model_final.pth")
    for name in (
        "roi_heads.box_predictor.cls_score.weight",
        "backbone.bottom_up.stem.conv1.weight",
    ):
        assert torch.isfinite(after[name]).all()
        assert not torch.equal(before[name], after[name])


@pytest.mark.parametrize(("name", "kind"), [("SGD", torch.optim.SGD), ("ADAMW", torch.optim.AdamW)])
def test_optimizer_is_that_of_the_config(cfg, name, kind):
    cfg.SOLVER.OPTIMIZER = name
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.WEIGHT_DECAY_NORM = 0.25, 0.0
    optimizer = Trainer.build_optimizer(cfg, model)
    assert isinstance(optimizer, kind)
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert [decay[id(p)] for p in model.parameters()] == [0.25, 0.25, 0.0, 0.0]


def test_unknown_optimizer_is_refused(cfg):
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER is 'LION', not SGD or ADAMW"):
        Trainer.build_optimizer(cfg, torch.nn.Linear(2, 2))


def test_device_falls_back_to_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("cuda:1") == "cpu"
    assert resolve_device("cpu") == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("cuda:1") == "cuda:1"
