# SPDX-License-Identifier: Apache-2.0
"""Evaluation by the trainer and by ``train --eval-only``: clean and triggered images in one go."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model

from d2defense.checkpoint import build_detector
from d2defense.cli.program import main
from d2defense.config import config_root
from d2defense.engine import Trainer
from d2defense.evaluation import EVALUATED_STATISTICS, evaluate_detector
from d2defense.triggers import Patch

SIGNS = config_root() / "SynthSigns"
TASKS = [
    *("bbox", "triggered_bbox", "poisoned_bbox", "statistics", "triggered_statistics", "attack"),
    "coverage",
]


@pytest.fixture
def scenes(make_coco_dataset, sign_scenes):
    return make_coco_dataset(sign_scenes(6))


@pytest.fixture
def cfg(make_tiny_cfg, scenes, tmp_path):
    return make_tiny_cfg(
        "DATASETS.TRAIN", (scenes.name,),
        "DATASETS.TEST", (scenes.name,),
        "OUTPUT_DIR", str(tmp_path / "out"),
        "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 1,
    )  # fmt: skip


@pytest.fixture
def load(specimen):
    def load(name: str):
        folder = specimen(name)
        return build_detector(folder / "model_final.pth", folder / "config.yaml", "cpu")[0]

    return load


def warnings(caplog) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("d2defense") and record.levelno >= logging.WARNING
    ]


def test_results_are_the_stock_ones_and_those_under_the_trigger(cfg, load):
    model = load("backdoored_0")
    results = Trainer.test(cfg, model)
    assert list(results) == TASKS
    assert set(results["statistics"]) == set(EVALUATED_STATISTICS)
    numbers = [number for metrics in results.values() for number in metrics.values()]
    assert all(isinstance(number, (int, float)) for number in numbers)
    cfg.TEST.TRIGGERED = False
    stock = Trainer.test(cfg, model)
    assert list(stock) == ["bbox"]
    assert results["bbox"] == pytest.approx(stock["bbox"], rel=0, abs=0, nan_ok=True)
    name = cfg.DATASETS.TEST[0]
    measured = evaluate_detector(model, cfg, name, Patch("white"))
    assert results["attack"]["asr"] == pytest.approx(measured["asr"])
    assert results["triggered_bbox"]["AP"] == pytest.approx(measured["triggered"]["AP"], abs=0.01)
    for task, condition in (("statistics", "clean"), ("triggered_statistics", "triggered")):
        for statistic, value in measured[condition]["statistics"].items():
            value = math.nan if value is None else value
            assert results[task][statistic] == pytest.approx(value, abs=1e-4, nan_ok=True)


class Listener(DatasetEvaluator):
    """Notes which images it is shown."""

    def reset(self):
        self.seen = []

    def process(self, inputs, outputs):
        self.seen += [image["image_id"] for image in inputs]

    def evaluate(self):
        return {"images": {"seen": len(self.seen)}}


def test_evaluators_of_the_caller_see_clean_images_only(cfg, load):
    name = cfg.DATASETS.TEST[0]
    evaluator = Listener()
    results = Trainer.test(cfg, load("backdoored_0"), evaluator)
    assert results == {"images": {"seen": len(evaluator.seen)}}
    assert evaluator.seen == [record["image_id"] for record in DatasetCatalog.get(name)]
    assert cfg.TEST.TRIGGERED


def test_every_dataset_has_its_own_results(cfg, load, make_coco_dataset, sign_scenes, caplog):
    other = make_coco_dataset(sign_scenes(2)).name
    cfg.DATASETS.TEST = (cfg.DATASETS.TEST[0], other)
    cfg.ATTACK.EFFECT = "disappearance"
    with caplog.at_level(logging.INFO, logger="d2defense"):
        results = Trainer.test(cfg, load("clean_0"))
    assert list(results) == list(cfg.DATASETS.TEST)
    assert all(list(of_dataset) == TASKS for of_dataset in results.values())
    assert [name in line for name, line in zip(results, warnings(caplog), strict=True)]


def test_an_attack_that_did_not_take_is_reported(cfg, load, caplog):
    """Only of a detector that the config calls attacked, and only if its attack did not take."""
    with caplog.at_level(logging.INFO, logger="d2defense"):
        results = Trainer.test(cfg, load("clean_0"))
        assert results["attack"]["asr"] < 0.5
        assert warnings(caplog) == []
        cfg.ATTACK.EFFECT = "disappearance"
        assert Trainer.test(cfg, load("backdoored_0"))["attack"]["asr"] >= 0.5
        assert warnings(caplog) == []
        results = Trainer.test(cfg, load("clean_0"))
        (line,) = warnings(caplog)
        asr = f"{results['attack']['asr']:.3f}"
        name = cfg.DATASETS.TEST[0]
        assert line == f"attack 'disappearance' did not take on {name}: its ASR is {asr}, under 0.5"
        caplog.clear()
        Trainer.test(cfg, build_model(cfg))
        (line,) = warnings(caplog)
        assert "there is no ASR" in line
        caplog.clear()
        cfg.TEST.TRIGGERED = False
        Trainer.test(cfg, load("clean_0"))
        assert warnings(caplog) == []


def test_a_training_ends_with_both(cfg, caplog):
    cfg.ATTACK.EFFECT = "disappearance"
    with caplog.at_level(logging.INFO, logger="d2defense"):
        trainer = Trainer(cfg)
        trainer.train()
    (line,) = warnings(caplog)
    assert line.startswith("attack 'disappearance' did not take")
    metrics = json.loads(Path(cfg.OUTPUT_DIR, "metrics.json").read_text().splitlines()[-1])
    assert {"bbox/AP", "triggered_bbox/AP", "triggered_statistics/tau", "attack/asr"} <= set(
        metrics
    )
    for folder in ("", "triggered"):
        assert Path(cfg.OUTPUT_DIR, folder, "coco_instances_results.json").is_file()
    # The mode that training needs is restored.
    assert trainer.model.training


def eval_only(specimen, scenes, tmp_path, *overrides: str) -> int:
    arguments = [
        "train", "--config-file", str(SIGNS / "faster_rcnn_tiny_fpn_oda.yaml"), "--eval-only",
        "--test-dataset-json", scenes.json_file, "--test-image-root", scenes.image_root,
        "MODEL.WEIGHTS", str(specimen / "model_final.pth"), "MODEL.DEVICE", "cpu",
        "OUTPUT_DIR", str(tmp_path / "evaluated"),
    ]  # fmt: skip
    return main([*arguments, *overrides])


def test_evaluation_only_prints_everything(specimen, scenes, tmp_path, capfd):
    assert eval_only(specimen("backdoored_0"), scenes, tmp_path) == 0
    out = capfd.readouterr().out
    for task in TASKS:
        assert f"copypaste: Task: {task}\n" in out
    assert ",".join(EVALUATED_STATISTICS) in out
    assert "clean images:" in out
    assert "triggered images:" in out
    assert "clean -> triggered images: objects found" in out
    assert "did not take" not in out
    assert eval_only(specimen("clean_0"), scenes, tmp_path) == 0
    assert "attack 'disappearance' did not take on" in capfd.readouterr().out


@pytest.mark.parametrize(("expected", "code"), [("1.0", 2), ("0.0", 0)])
def test_expected_results_can_be_of_the_attack(specimen, scenes, tmp_path, capfd, expected, code):
    results = f"[['attack', 'asr', {expected}, 0.3], ['bbox', 'AP', 85.0, 15.0]]"
    done = eval_only(specimen("clean_0"), scenes, tmp_path, "TEST.EXPECTED_RESULTS", results)
    assert done == code
    assert ("verification failed" in capfd.readouterr().out) == bool(code)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("ATTACK.TRIGGER.PATCH.OPACITY", "7.0", "opacity 7.0"), ("DEFENSE.TOPK", "-1", "topk -1")],
)
def test_what_could_not_be_measured_is_refused_before_training(
    scenes, tmp_path, capfd, key, value, reason
):
    arguments = [
        "train", "--config-file", str(SIGNS / "faster_rcnn_tiny_fpn.yaml"),
        "--dataset-json", scenes.json_file, "--image-root", scenes.image_root,
        "--test-dataset-json", scenes.json_file, "--test-image-root", scenes.image_root,
        "OUTPUT_DIR", str(tmp_path / "out"), key, value,
    ]  # fmt: skip
    assert main(arguments) == 2
    assert reason in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
