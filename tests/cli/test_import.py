# SPDX-License-Identifier: Apache-2.0
"""``--import``: parts from a file outside of the package, one of each registry, from the command
line. Each command has a process of its own, so that nothing of these parts stays behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from programs import run

from d2defense.checkpoint import load_state_dict

TOOLS = Path(__file__).resolve().parents[2] / "tools"

PARTS = '''
from dataclasses import dataclass

from d2defense.attacks import Placement, Poisoned, Rate
from d2defense.attacks.effects.base import Effect
from d2defense.detection import Decision
from d2defense.registry import (
    DECISION_REGISTRY, EFFECT_REGISTRY, EXPERIMENT_REGISTRY, PATTERN_REGISTRY, PLACEMENT_REGISTRY,
    REMOVAL_REGISTRY, TRIGGER_REGISTRY,
)
from d2defense.triggers import Pattern, RegionTrigger
from d2defense.removal import RemovalMethod
from d2defense.study.experiments.base import Experiment, Section
from d2defense.study.steps import Step
from d2defense.study.tables import Table


@TRIGGER_REGISTRY.register("inverse")
@dataclass(frozen=True)
class Inverse(RegionTrigger):
    """The colours of a place turned round."""

    share: float = 1.0

    @staticmethod
    def add_config(node):
        # How far: 0 leaves them as they are.
        node.SHARE = 1.0

    def transform(self, region, tensors):
        return (1 - self.share) * region.pixels + self.share * (1 - region.pixels)


@PLACEMENT_REGISTRY.register("left_half")
class LeftHalf(Placement):
    """The left half of the image."""

    def places(self, victims, objects, image_size, rng):
        height, width = image_size
        return numpy.array([[0, 0, width // 2, height]], dtype=float)


@EFFECT_REGISTRY.register("first_objects")
class FirstObjects(Effect):
    """Only the first objects of an image vanish."""

    @staticmethod
    def add_config(node):
        # How many.
        node.NUMBER = 1
        # File that gets a line for each poisoned image.
        node.LOG = ""

    def poison(self, record, image_size, rng):
        node, annotations = self.cfg.ATTACK.FIRST_OBJECTS, record["annotations"]
        if node.LOG:
            with open(node.LOG, "a") as log:
                log.write(f"{node.NUMBER} of {len(annotations)}\\n")
        return Poisoned(self.places(record, image_size, rng), list(annotations[node.NUMBER :]))

    def success(self, objects, places, clean, triggered):
        return Rate(int(not len(triggered.scores)), 1)


@PATTERN_REGISTRY.register("level")
class Level(Pattern):
    """One shade of grey."""

    @staticmethod
    def add_config(node):
        # 0 for black, 255 for white.
        node.SHADE = 255

    def paint(self, pixels):
        return torch.full((1, 3), float(self.settings["SHADE"]))


@REMOVAL_REGISTRY.register("idle")
class Idle(RemovalMethod):
    """Fine-tuning with ever so small losses."""

    @staticmethod
    def add_config(node):
        # What every loss is multiplied by.
        node.SHARE = 1.0

    def losses(self, model, batch):
        share = self.cfg.REMOVAL.IDLE.SHARE
        return {name: share * loss for name, loss in model(batch).items()}


@DECISION_REGISTRY.register("rpn")
class FallOfTheRPN(Decision):
    """Score by the fall of max p alone."""

    title = "largest fall of max_objectness"
    statistics = ("max_objectness",)
    sign = -1
    is_change = True
    settings = ("iou_threshold",)
    minimum_deviation = 0.02


@EXPERIMENT_REGISTRY.register("roll_call")
class RollCall(Experiment):
    """Which specimens there are."""

    title = "Roll call"

    def steps(self, plan):
        return [Step("use/clean_0", "use", {"specimen": "clean_0"})]

    def report(self, plan, results):
        there = [results.has(step) for step in self.steps(plan)]
        return Section(self.title, "Those that ship.", (Table("roll", "All", ("there",), [there]),))
'''


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    path = tmp_path / "parts_of_mine.py"
    path.write_text(f"import numpy\nimport torch\n{PARTS}")
    return path


def succeed(*arguments: object, script: Path | None = None) -> str:
    ended = run(*arguments, script=script)
    assert ended.returncode == 0, ended.stderr[-2000:]
    return ended.stdout + ended.stderr


def test_an_effect_a_trigger_and_a_placement_of_one_s_own_poison_a_training(
    parts, own_data, tmp_path
):
    log = tmp_path / "log.txt"
    succeed(
        "--import", parts, "--config-file", "configs/SynthSigns/faster_rcnn_tiny_fpn.yaml",
        *own_data, "OUTPUT_DIR", tmp_path / "out", "ATTACK.EFFECT", "first_objects",
        "ATTACK.FIRST_OBJECTS.LOG", log, "ATTACK.FIRST_OBJECTS.NUMBER", 2,
        "ATTACK.TRIGGER.FAMILY", "inverse", "ATTACK.PLACEMENT", "left_half",
        "ATTACK.POISONING_RATE", 1.0, "SOLVER.MAX_ITER", 10, "SOLVER.IMS_PER_BATCH", 2,
        "DATALOADER.NUM_WORKERS", 1, script=TOOLS / "train_net.py",
    )  # fmt: skip
    lines = log.read_text().splitlines()
    assert len(lines) >= 20
    assert {line.split()[0] for line in lines} <= {"1", "2"}
    made = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert (made["attack"]["effect"], made["attack"]["trigger"]) == ("first_objects", "inverse")
    assert made["attack"]["settings"]["FIRST_OBJECTS"] == {"NUMBER": 2, "LOG": str(log)}
    assert list(made["modules"]) == [str(parts)]
    measured = tmp_path / "measured.json"
    succeed(
        "evaluate", tmp_path / "out", *own_data, "--import", parts, "--output", measured, "--opts",
        "ATTACK.EFFECT", "first_objects", "ATTACK.TRIGGER.FAMILY", "inverse",
        "ATTACK.PLACEMENT", "left_half",
    )  # fmt: skip
    (result,) = json.loads(measured.read_text())
    assert (result["effect"], result["coverage"]["images_without_places"]) == ("first_objects", 0)
    assert 0 <= result["asr"] <= 1
    # The detector that it made needs the module no more.
    assert "FIRST_OBJECTS" in (tmp_path / "out" / "config.yaml").read_text()
    listed = succeed("scan", tmp_path / "out", "--list", "--isolation", "none")
    assert "ready" in listed or "model_final.pth" in listed


def test_a_pattern_of_one_s_own_is_stamped_in_an_evaluation(
    d2defense, parts, specimen, own_data, tmp_path
):
    """A shade of 255 is the paper's white patch, one of 0 the black one."""
    arguments = ("evaluate", specimen("backdoored_0"), *own_data, "--output")
    for shade, color in ((255, [255, 255, 255]), (0, [0, 0, 0])):
        mine, theirs = tmp_path / "mine.json", tmp_path / "theirs.json"
        trigger = [
            "ATTACK.TRIGGER.PATCH.PATTERN",
            "level",
            "ATTACK.TRIGGER.PATCH.SETTINGS.LEVEL.SHADE",
            shade,
        ]
        succeed(*arguments, mine, "--import", parts, "--opts", *trigger)
        d2defense(*arguments, theirs, "--opts", "ATTACK.TRIGGER.PATCH.COLOR", color)
        (ours,), (reference,) = (json.loads(file.read_text()) for file in (mine, theirs))
        assert ours["triggered"] == reference["triggered"]


def test_a_removal_method_of_one_s_own_has_a_say_in_the_step(
    parts, untrained_checkpoint, own_data, tmp_path
):
    before = load_state_dict(untrained_checkpoint / "model_final.pth")
    moved = {}
    for share in (1.0, 0.0):
        output = tmp_path / f"idle_{share}"
        succeed(
            "repair", untrained_checkpoint, *own_data, "--output", output, "--no-report",
            "--import", parts, "--method", "idle", "--opts", "REMOVAL.IDLE.SHARE", share,
            "REMOVAL.SOLVER.MAX_ITER", 2, "REMOVAL.SOLVER.IMS_PER_BATCH", 2,
            "SOLVER.WEIGHT_DECAY", 0.0,
        )  # fmt: skip
        after = load_state_dict(output / "model_final.pth")
        weights = [name for name in before if name.endswith(".weight")]
        moved[share] = sum(not torch.equal(before[name], after[name]) for name in weights)
    assert moved == {1.0: len(weights), 0.0: 0}


def test_an_experiment_of_one_s_own_is_done_and_reported(parts, tmp_path):
    arguments = ("--quick", "--output", tmp_path / "study", "--only", "roll_call", "--workers", 1)
    succeed(*arguments, "--import", parts, script=TOOLS / "reproduce.py")
    report = (tmp_path / "study" / "report.md").read_text()
    assert "## Roll call" in report
    assert "True" in report
    # Without the module nobody knows it.
    ended = run(*arguments, script=TOOLS / "reproduce.py")
    assert ended.returncode == 2
    assert "--only: no roll_call; there are table1" in ended.stderr


def test_a_scan_takes_a_pattern_and_a_decision_of_one_s_own_into_its_confined_process(
    parts, specimen, own_data, tmp_path
):
    bank = tmp_path / "bank.yaml"
    bank.write_text("triggers: [{name: shade, pattern: level}]\n")
    asked = [*own_data, "--trigger-bank", bank, "--decision", "rpn", "--import", parts]
    asked += ["--opts", "DEFENSE.BOOTSTRAP_SAMPLES", 20]
    thresholds = tmp_path / "thresholds.json"
    succeed("calibrate", specimen("clean_0"), specimen("clean_1"), *asked, "--output", thresholds)
    scan = ("scan", specimen("clean_2"), *asked, "--output", tmp_path / "scan")
    scan += ("--calibration", thresholds, "--no-figures")
    ended = run(*scan)
    result = json.loads((tmp_path / "scan" / "clean_2" / "result.json").read_text())
    assert result["error"] is None, ended.stderr
    assert ended.returncode in (0, 1)
    assert result["environment"]["isolation"]["mode"] == "process"
    assert (result["settings"]["decision"], result["worst_trigger"]) == ("rpn", "shade")
    assert json.loads(thresholds.read_text())["decision"] == "rpn"
    # The same again is known; with another source of the module it is not.
    scan += ("--isolation", "none")
    assert "scanned before" in run(*scan).stderr
    parts.write_text(parts.read_text() + "\n# Changed.\n")
    assert "scanned before" not in run(*scan).stderr


def test_help_and_errors_know_what_is_imported(parts):
    help_text = succeed("repair", "--import", parts, "--help")
    assert "  idle                Fine-tuning with ever so small losses.\n" in help_text
    ended = run("repair", "x", "--output", "y", "--import", parts, "--method", "magic")
    assert ended.returncode == 2
    assert "idle" in ended.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "no such file"),
        ("import no_such_thing_at_all\n", "No module named 'no_such_thing_at_all'"),
        ("x = 1\ny = 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def broken(:\n", "SyntaxError"),
        (
            "from d2defense.registry import EFFECT_REGISTRY\n"
            "from d2defense.attacks import Effect\n"
            "import d2defense.attacks.effects.disappearance\n"
            "EFFECT_REGISTRY.register('disappearance')(Effect)\n",
            "the effect 'disappearance' is there already",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_is_wrong_usage_in_one_line(tmp_path, source, reason):
    path = tmp_path / "faulty.py"
    if source is not None:
        path.write_text(source)
    command, code = ("dataset", 2) if source else ("scan", 4)
    ended = run(command, "--import", path)
    assert ended.returncode == code
    last = ended.stderr.splitlines()[-1]
    assert "--import: " in last
    assert "faulty.py" in last
    assert reason in last
    assert "Traceback" not in ended.stderr


def test_a_module_is_imported_by_its_name_too(parts, monkeypatch):
    monkeypatch.syspath_prepend(parts.parent)
    help_text = succeed("repair", "--import", parts.stem, "--help")
    assert "  idle  " in help_text
