# SPDX-License-Identifier: Apache-2.0
"""``repair``, ``evaluate`` and ``calibrate`` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from d2defense.checkpoint import load_state_dict
from d2defense.cli.program import main
from d2defense.detection import load_calibration
from d2defense.report.results import error_result


def fails(outcome, *words: str) -> None:
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err + outcome.out
    assert "Traceback" not in outcome.err
    assert "Traceback" not in outcome.out


SHORT = ["--opts", "REMOVAL.SOLVER.MAX_ITER", "2", "REMOVAL.SOLVER.IMS_PER_BATCH", "2"]


def test_repair(d2defense, untrained_checkpoint, own_data, tmp_path):
    output = tmp_path / "repaired"
    outcome = d2defense(
        "repair", untrained_checkpoint, *own_data, "--output", output, "--modules", "rpn",
        "--no-report", *SHORT,
    )  # fmt: skip
    assert outcome.code == 0
    assert str(output) in outcome.out
    assert not (output / "report.html").exists()
    assert (output / "model_final.pth").is_file()
    assert (output / "config.yaml").read_bytes() == (
        untrained_checkpoint / "config.yaml"
    ).read_bytes()


def test_repair_scans_first_and_reports_before_and_after(
    d2defense, untrained_checkpoint, make_coco_dataset, sign_scenes, own_data, tmp_path
):
    test = make_coco_dataset(sign_scenes(11)[8:])
    tested = ["--test-dataset-json", test.json_file, "--test-image-root", test.image_root]
    output = tmp_path / "repaired"
    arguments = ("repair", untrained_checkpoint, *own_data, *tested, "--method", "renewal")
    outcome = d2defense(*arguments, "--output", output, *SHORT, "DEFENSE.TRIGGERS", "('white',)")
    # An untrained detector is none that a scan calls clean.
    assert outcome.code == 1, outcome.err
    assert "not repaired: the scan calls the result uncertain" in outcome.out
    assert "by the scan, which names" in outcome.out
    summary = json.loads((output / "report.json").read_text())
    assert summary["measured_on"] == test.name
    assert not summary["measured_on_training_images"]
    assert not summary["repaired"] and summary["obstacles"]
    assert summary["before"].keys() == summary["after"].keys() >= {"asr", "verdict", "AP50_clean"}
    page = (output / "report.html").read_text()
    # The bars, histograms, heat maps, and examples before and after.
    assert page.count("data:image/png") == 5
    # The scan of before is evidence that a second repair can go by.
    result = next((output / "scan_before").glob("*/result.json"))
    again = d2defense(
        *arguments, "--scan", result, "--no-report", "--output", tmp_path / "again", *SHORT
    )
    assert again.code == 0, again.err
    # On other images than these, which is said.
    on_its_own = d2defense(
        "repair", untrained_checkpoint, *own_data, "--scan", result,
        "--output", tmp_path / "third", *SHORT, "DEFENSE.TRIGGERS", "('white',)",
    )  # fmt: skip
    assert on_its_own.code == 1, on_its_own.err
    assert f"the score before on {test.name}" in on_its_own.out
    # But not of another checkpoint.
    other = d2defense("repair", output / "model_final.pth", *own_data, "--scan", result, "--output",
                      tmp_path / "other", *SHORT)  # fmt: skip
    fails(other, "is the result of other weights")


def test_a_repair_goes_by_what_the_scan_has_found(
    d2defense, untrained_checkpoint, own_data, tmp_path
):
    scanned = d2defense("scan", untrained_checkpoint, *own_data, "--output", tmp_path / "scan")
    assert scanned.code in (0, 1), scanned.err
    (file,) = (tmp_path / "scan").glob("*/result.json")
    repair = ("repair", untrained_checkpoint, *own_data, "--scan", file, "--no-report", *SHORT)
    few = ("REMOVAL.UNLEARN.TRIGGERS", 1, "REMOVAL.UNLEARN.STEPS", 1)
    outcome = d2defense(*repair, *few, "--output", tmp_path / "default")
    assert "patch_augmentation in" in outcome.out, outcome.err
    result = json.loads(file.read_text())
    arm = {"effect": "ghost", "placement": "background", "target_class": "c1", "victim_class": None}
    arm |= {"family": "patch", "budget": "patch of 40 %", "interval": [0.7, 0.9]}
    arm |= {"success": 0.9, "references": [], "excess": 0.8, "baseline": 0.1, "deviation": 0.1}
    result["search"] = dict.fromkeys(("obstacle", "trigger"), None) | {
        "level": "fast", "references": [], "left_out": [], "num_images": 0, "score": 1.0,
        "score_interval": [1.0, 1.0], "threshold": 0.5, "p_value": 0.0, "operating_point": 0.5,
        "has_found": True, "arms": [arm], "seconds": 1.0,
    }  # fmt: skip

    file.write_text(json.dumps(result))
    outcome = d2defense(*repair, *few, "--output", tmp_path / "found")
    assert "unlearn in" in outcome.out, outcome.err
    found = result["verdict"]
    result["verdict"], result["search"]["arms"] = "clean", []
    file.write_text(json.dumps(result))
    outcome = d2defense(*repair, "--output", tmp_path / "kept")
    assert "keep in" in outcome.out, outcome.err
    kept, given = (
        load_state_dict(each / "model_final.pth")
        for each in (tmp_path / "kept", untrained_checkpoint)
    )
    assert all(torch.equal(kept[name], given[name]) for name in given)
    result["verdict"] = found
    result["search"] = None
    result["bank"] = {"verdict": "backdoored", "score": 1.0, "threshold": 0.2}
    result["triggers"][0]["score"] = 1.0
    file.write_text(json.dumps(result))
    outcome = d2defense(*repair, "--output", tmp_path / "known")
    assert "known_trigger in" in outcome.out, outcome.err
    # Whoever names a method gets it.
    outcome = d2defense(*repair, "--method", "vanilla", "--output", tmp_path / "named")
    assert "vanilla in" in outcome.out, outcome.err


def test_repair_searches_unless_told_not_to(untrained_checkpoint, own_data, tmp_path, capfd):
    """A bank that sees a backdoor neither before nor after would call its result repaired."""
    arguments = ["repair", untrained_checkpoint, *own_data, "--output", tmp_path / "repaired"]
    assert main([*map(str, arguments), *SHORT, "DEFENSE.TRIGGERS", "('white',)"]) == 1
    assert "not repaired" in capfd.readouterr().out
    for folder in ("scan_before", "scan_after"):
        (file,) = (tmp_path / "repaired" / folder).glob("*/result.json")
        searched = json.loads(file.read_text())["search"]
        assert searched["level"] == "fast"
        assert "needs 20 images" in searched["obstacle"]


def test_what_a_search_could_not_say_is_not_repaired_by_the_bank_alone(
    d2defense, specimen, own_data, tmp_path
):
    checkpoint, quick = specimen("clean_0"), ("DEFENSE.TRIGGERS", "('white',)")
    scan = ("scan", checkpoint, *own_data, "--output", tmp_path / "scan", "--search", "fast")
    assert d2defense(*scan, "--opts", *quick).code == 1
    (file,) = (tmp_path / "scan").glob("*/result.json")
    searched = json.loads(file.read_text())["search"]
    assert searched["obstacle"] and not searched["arms"]
    output = tmp_path / "repaired"
    outcome = d2defense(
        "repair", checkpoint, *own_data, "--scan", file, "--search", "off", "--output", output,
        "--method", "vanilla", "--max-ap-drop", 100, *SHORT, *quick,
    )  # fmt: skip
    assert outcome.code == 1, outcome.err
    assert "not repaired: the scan before has searched" in outcome.out
    summary = json.loads((output / "report.json").read_text())
    assert (summary["before"]["searched"], summary["after"]["searched"]) == (True, False)
    assert summary["after"]["verdict"] == "clean"
    assert not summary["repaired"]


def test_what_cannot_be_scanned_is_not_repaired(
    d2defense, untrained_checkpoint, own_data, tmp_path, monkeypatch
):
    """Else it would be fine-tuned as if nothing had been found."""
    failed = error_result("model", "the scan failed: out of memory")
    monkeypatch.setattr("d2defense.workflows.repair.scan", lambda *args, **kwargs: [failed])
    output = tmp_path / "repaired"
    outcome = d2defense("repair", untrained_checkpoint, *own_data, "--output", output)
    fails(outcome, "what is wrong with it is not known: the scan failed: out of memory")
    assert not (output / "model_final.pth").exists()


def test_repair_refuses_to_test_on_what_it_trains_on(
    d2defense, untrained_checkpoint, make_coco_dataset, sign_scenes, own_data, tmp_path
):
    test = make_coco_dataset(sign_scenes(10)[7:])
    outcome = d2defense(
        "repair", untrained_checkpoint, *own_data, "--test-dataset-json", test.json_file,
        "--test-image-root", test.image_root, "--output", tmp_path / "repaired", *SHORT,
    )  # fmt: skip
    fails(outcome, "share 1 images", "picture_7.png")
    assert not (tmp_path / "repaired" / "model_final.pth").exists()


def test_repair_needs_no_labels(d2defense, specimen, make_coco_dataset, sign_scenes, tmp_path):
    images = make_coco_dataset(sign_scenes(8))
    labels = json.loads(Path(images.json_file).read_text())
    Path(images.json_file).unlink()
    output = tmp_path / "repaired"
    outcome = d2defense(
        "repair", specimen("clean_0"), "--images", images.image_root, "--labels", "none",
        "--output", output, *SHORT, "DEFENSE.TRIGGERS", "('white',)",
    )  # fmt: skip
    # Two small steps leave a clean detector as it was.
    assert outcome.code == 0, outcome.err
    assert "repaired" in outcome.out and "not repaired" not in outcome.out
    assert "what the checkpoint itself said" in outcome.out
    said = json.loads((output / "pseudo_labels.json").read_text())
    assert len(said["images"]) == 8
    # It knows the signs, so these labels are about the true ones.
    true, found = (
        {(a["image_id"], a["category_id"]) for a in each["annotations"]} for each in (labels, said)
    )
    assert len(found & true) >= 0.8 * len(true)


@pytest.mark.slow
def test_a_repair_that_costs_too_much_goes_on_and_says_so(
    d2defense, specimen, own_data, make_coco_dataset, sign_scenes, tmp_path
):
    test = make_coco_dataset(sign_scenes(11)[8:])
    output = tmp_path / "repaired"
    command = (
        "repair", specimen("clean_0"), *own_data, "--output", output, "--rounds", 2,
        "--test-dataset-json", test.json_file, "--test-image-root", test.image_root, "--resume",
        *SHORT, "REMOVAL.SOLVER.BASE_LR", "0.1",
        "REMOVAL.SOLVER.WARMUP_ITERS", "0", "DEFENSE.TRIGGERS", "('white',)",
    )  # fmt: skip
    outcome = d2defense(*command)
    assert outcome.code == 1, outcome.err
    assert "Round 1 of 2 did not repair it" in outcome.out
    assert "not repaired: AP on clean images" in outcome.out
    summary = json.loads((output / "report.json").read_text())
    assert (summary["rounds"], summary["repaired"]) == (2, False)
    assert (output / "round_1" / "model_final.pth").is_file()
    assert (output / "model_final.pth").is_file()
    # Nothing of it is trained or scanned again.
    made = sorted([*output.rglob("model_final.pth"), *output.rglob("metrics.json")])
    before = [path.stat().st_mtime_ns for path in made]
    again = d2defense(*command)
    assert (again.code, again.out) == (1, outcome.out)
    assert again.err.count("scanned before") == 3
    assert [path.stat().st_mtime_ns for path in made] == before


def test_repair_says_which_options_contradict_each_other(d2defense, specimen, own_data, tmp_path):
    begin = ("repair", specimen("clean_0"), "--output", tmp_path / "repaired")
    empty = tmp_path / "empty"
    empty.mkdir()
    fails(d2defense(*begin, "--images", empty), "--labels none")
    fails(d2defense(*begin, "--images", empty, "--labels", "none", *own_data), "takes the place")
    fails(d2defense(*begin, "--images", empty, "--labels", "none"), "holds no image file")
    fails(d2defense(*begin, *own_data, "--search", "fast", "--reference", empty), "--reference")
    fails(d2defense(*begin, *own_data, "--rounds", 0), "not positive")
    fails(d2defense(*begin, *own_data, "--max-ap-drop", "nan"), "no number of points")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--modules", "neck"], "no module group neck"),
        (["--scan", "no_such_result.json"], "no_such_result.json"),
        (["--test-dataset-json", "some.json"], "go together"),
        (["--opts", "REMOVAL.NO_SUCH", "1"], "NO_SUCH"),
        (["--opts", "REMOVAL.SOLVER.MAX_ITER"], "--opts"),
        (["--method", "magic"], "magic"),
    ],
)
def test_repair_refuses_in_one_line(
    d2defense, untrained_checkpoint, own_data, tmp_path, options, reason
):
    outcome = d2defense(
        "repair", untrained_checkpoint, *own_data, "--output", tmp_path / "repaired", *options
    )
    fails(outcome, reason)


def test_repair_names_the_path_that_is_wrong(d2defense, own_data, tmp_path, untrained_checkpoint):
    gone = tmp_path / "gone"
    outcome = d2defense("repair", gone, *own_data, "--output", tmp_path / "repaired")
    fails(outcome, f"{gone}: no such file or folder")
    for name in ("a", "b"):
        shutil.copytree(untrained_checkpoint, tmp_path / "zoo" / name)
    outcome = d2defense("repair", tmp_path / "zoo", *own_data, "--output", tmp_path / "repaired")
    fails(outcome, "several checkpoints")
    outcome = d2defense("repair", tmp_path / "zoo/a", *own_data, "--output", tmp_path / "zoo/a")
    fails(outcome, "the folder of the checkpoint itself")
    outcome = d2defense(
        "repair", tmp_path / "zoo/a", "--dataset", "no_such_set", "--output", tmp_path / "repaired"
    )
    fails(outcome, "unknown dataset 'no_such_set'")


def test_evaluate(d2defense, specimen, own_data, tmp_path):
    outcome = d2defense(
        "evaluate", specimen("backdoored_0"), tmp_path / "gone", *own_data,
        "--output", tmp_path / "evaluation.json",
    )  # fmt: skip
    assert outcome.code == 2
    good, bad = json.loads((tmp_path / "evaluation.json").read_text())
    assert good["error"] is None
    assert good["clean"]["AP50"] > 50
    assert good["asr"] > 0.3
    assert good["attack_took"] == (good["asr"] >= 0.5)
    assert good["triggered"]["statistics"]["gap"] > good["clean"]["statistics"]["gap"]
    assert f"{good['triggered']['statistics']['tau']:.3f}" in outcome.out
    assert bad["error"] == f"{tmp_path / 'gone'}: no such file or folder"
    assert f"error: {bad['error']}" in outcome.out
    assert "backdoored_0" in outcome.out


def test_evaluate_cannot_compare_other_classes(d2defense, specimen, make_coco_dataset, sign_scenes):
    source = make_coco_dataset(sign_scenes(2), num_classes=9)
    outcome = d2defense(
        "evaluate", specimen("clean_0"),
        "--dataset-json", source.json_file, "--image-root", source.image_root,
    )  # fmt: skip
    fails(outcome, "9 classes", "7")


def test_evaluate_refuses_triggers_that_make_no_sense(d2defense, specimen, own_data):
    outcome = d2defense(
        "evaluate", specimen("clean_0"), *own_data, "--opts", "ATTACK.TRIGGER.PATCH.OPACITY", "7.0"
    )
    fails(outcome, "opacity 7.0")


def test_calibrate(d2defense, specimen, own_data, tmp_path):
    path = tmp_path / "thresholds.json"
    outcome = d2defense(
        "calibrate", specimen("clean_0"), specimen("clean_1"), *own_data, "--output", path,
        "--false-alarm-rate", 0.05, "--name", "two specimens",
        "--opts", "DEFENSE.TRIGGERS", "('white',)",
    )  # fmt: skip
    assert outcome.code == 0
    made = load_calibration(path)
    assert len(made.profiles) == 2
    assert [name for name, _ in made.triggers] == ["white"]
    assert (made.name, made.false_alarm_rate) == ("two specimens", 0.05)
    assert f"{made.threshold:.3f}" in outcome.out


def test_calibrate_rests_on_every_checkpoint_or_none(d2defense, specimen, own_data, tmp_path):
    path = tmp_path / "thresholds.json"
    options = [*own_data, "--output", path, "--opts", "DEFENSE.TRIGGERS", "('white',)"]
    fails(d2defense("calibrate", tmp_path / "gone", *options), "gone: no such file or folder")
    fails(d2defense("calibrate", specimen("clean_0"), *options), "at least 2 clean detectors")
    assert not path.exists()
