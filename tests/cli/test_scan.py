# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import shutil

import pytest
import torch
import yaml

from d2defense.checkpoint import load_state_dict
from d2defense.report.results import load_results

QUICK = ["--triggers", "white", "--opts", "DEFENSE.BOOTSTRAP_SAMPLES", "50"]


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, canary) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


def results_of(output) -> dict[str, dict]:
    """The results on disk, which must fit the schema, by name."""
    return {result["name"]: result for result in load_results(output)}


@pytest.fixture
def broken(specimen, tmp_path):
    """A folder of checkpoints, each broken in one way, and the reason that a scan must give."""
    zoo = tmp_path / "zoo"
    good = specimen("clean_0")

    def copied(name: str):
        return shutil.copytree(good, zoo / name)

    (zoo / "empty").mkdir(parents=True)
    no_config = copied("no_config")
    (no_config / "config.yaml").unlink()
    # Not those of the others, which are scanned with their config.
    shutil.copy(specimen("clean_1") / "model_final.pth", no_config)
    truncated = copied("truncated") / "model_final.pth"
    truncated.write_bytes(truncated.read_bytes()[:-5000])
    shapes = copied("other_shapes") / "config.yaml"
    config = yaml.safe_load(shapes.read_text())
    config["MODEL"]["ROI_HEADS"]["NUM_CLASSES"] = 3
    shapes.write_text(yaml.safe_dump(config))
    proposals = copied("proposals") / "config.yaml"
    config["MODEL"]["META_ARCHITECTURE"] = "ProposalNetwork"
    proposals.write_text(yaml.safe_dump(config))
    junk = copied("binary_config") / "config.yaml"
    junk.write_bytes(bytes(range(256)))
    evil = copied("evil") / "model_final.pth"
    state = load_state_dict(good / "model_final.pth")
    torch.save({"model": state, "x": Payload(tmp_path / "executed")}, evil)
    return {
        tmp_path / "nowhere": "no such file or folder",
        zoo / "empty": "the folder is empty",
        zoo / "no_config": "no config.yaml beside model_final.pth",
        zoo / "truncated": "not a readable PyTorch checkpoint",
        zoo / "other_shapes": "tensors have another shape than the config says",
        zoo / "proposals": "MODEL.META_ARCHITECTURE is 'ProposalNetwork'",
        zoo / "binary_config": "not a plain YAML config",
        zoo / "evil": "not a safe PyTorch checkpoint",
    }


def test_bad_checkpoints_get_one_line_each_and_do_not_stop_the_others(
    d2defense, specimen, broken, own_data, tmp_path
):
    good = specimen("backdoored_0")
    outcome = d2defense("scan", *broken, good, *own_data, "--output", tmp_path / "out", *QUICK)
    assert outcome.code == 2
    assert "Traceback" not in outcome.out + outcome.err
    assert not (tmp_path / "executed").exists()
    results = results_of(tmp_path / "out")
    assert set(results) == {path.name for path in broken} | {"backdoored_0"}
    for path, reason in broken.items():
        result = results[path.name]
        assert result["verdict"] == "error"
        assert result["error"].startswith(str(path))
        assert reason in result["error"]
        assert "\n" not in result["error"]
        assert f"{path.name}: {result['error']}" in outcome.out.splitlines()
    assert results["backdoored_0"]["verdict"] == "backdoored"
    assert results["backdoored_0"]["error"] is None
    with open(tmp_path / "out" / "summary.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(broken) + 1
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(name in page for name in results)


def test_clean_checkpoints_pass(d2defense, specimen, own_data, tmp_path):
    outcome = d2defense(
        "scan", specimen("clean_0"), *own_data, "--output", tmp_path / "out", *QUICK
    )
    assert outcome.code == 0
    (result,) = load_results(tmp_path / "out")
    assert result["verdict"] == "clean"
    assert result["dominant_modules"] == []
    assert result["dataset"]["num_images"] == 8
    assert result["settings"]["bootstrap_samples"] == 50
    assert [trigger["name"] for trigger in result["triggers"]] == ["white"]
    assert "clean_0" in outcome.out
    assert str(tmp_path / "out" / "report.html") in outcome.out


def test_a_backdoor_fails_the_pipeline(d2defense, specimen, own_data, tmp_path):
    weights = specimen("backdoored_0") / "model_final.pth"
    outcome = d2defense(
        "scan", weights, *own_data, "--output", tmp_path / "out", "--max-images", 6, *QUICK
    )
    assert outcome.code == 1
    (result,) = load_results(tmp_path / "out")
    assert result["verdict"] == "backdoored"
    assert result["dataset"]["num_images"] == 6
    assert result["checkpoint"]["path"] == str(weights)


def scan_error(d2defense, specimen, tmp_path, *options) -> str:
    outcome = d2defense("scan", specimen("clean_0"), "--output", tmp_path / "out", *options, *QUICK)
    assert outcome.code == 2
    assert "Traceback" not in outcome.out + outcome.err
    (result,) = load_results(tmp_path / "out")
    assert result["verdict"] == "error"
    assert "\n" not in result["error"]
    return result["error"]


def test_unknown_dataset(d2defense, specimen, tmp_path):
    error = scan_error(d2defense, specimen, tmp_path, "--dataset", "synth_sings_val")
    assert "unknown dataset 'synth_sings_val'" in error
    assert "synth_signs_val" in error  # what may have been meant


def test_dataset_without_annotations(d2defense, specimen, tmp_path, own_data):
    json_file = own_data[1]
    with open(json_file) as stream:
        document = json.load(stream)
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(document | {"annotations": []}))
    options = ["--dataset-json", bare, "--image-root", own_data[3]]
    assert f"{bare}: 'annotations' is empty" in scan_error(d2defense, specimen, tmp_path, *options)


def test_dataset_of_crowds_only(d2defense, specimen, tmp_path, own_data):
    json_file = own_data[1]
    with open(json_file) as stream:
        document = json.load(stream)
    for annotation in document["annotations"]:
        annotation["iscrowd"] = 1
    crowds = tmp_path / "crowds.json"
    crowds.write_text(json.dumps(document))
    options = ["--dataset-json", crowds, "--image-root", own_data[3]]
    assert "no image shows an object" in scan_error(d2defense, specimen, tmp_path, *options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--triggers", "nonsense"], "no trigger nonsense in the bank"),
        (["--max-images", "-3"], "max_images -3"),
        (["--max-images", "many"], "many"),
        (["--seed", "-1"], "seed -1"),
        (["--opts", "DEFENSE.NO_SUCH", "1"], "NO_SUCH"),
        (["--opts", "DEFENSE.TOPK"], "--opts"),
        (["--opts", "DEFENSE.TOPK", "few"], "--opts"),
        (["--opts", "DEFENSE.BATCH_SIZE", "0"], "batch_size 0"),
        (["--calibration", "gone.json"], "gone.json"),
        (["--dataset-json", "val.json"], "--dataset-json and --image-root"),
        (["--nonsense"], "unrecognized arguments"),
        (["--memory-limit", "much"], "'much' is no size"),
        (["--memory-limit", "-1G"], "--memory-limit"),
        (["--time-limit", "-1"], "seconds -1"),
        (["--workers", "0"], "workers 0"),
        (["--workers", "2", "--isolation", "none"], "several workers need isolation"),
        (["--num-gpus", "-1"], "num_gpus -1"),
        (["--isolation", "some"], "--isolation"),
        (["--config-file", "a.yaml", "--model-zoo", "b"], "not allowed with"),
    ],
)
def test_usage_errors_end_before_anything_is_written(
    d2defense, untrained_checkpoint, tmp_path, options, reason
):
    outcome = d2defense(
        "scan", untrained_checkpoint, "--dataset", "d", "--output", tmp_path / "out", *options
    )
    assert outcome.code == 4
    assert reason in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_dataset_must_be_named(d2defense, untrained_checkpoint, tmp_path):
    outcome = d2defense("scan", untrained_checkpoint, "--output", tmp_path / "out")
    assert outcome.code == 4
    assert "no dataset" in outcome.err


@pytest.mark.parametrize("option", ["--json", "--sarif", "--junit"])
@pytest.mark.parametrize("place", ["/proc/nothing.out", "folder"])
def test_a_report_that_cannot_be_written_ends_before_anything_is_scanned(
    d2defense, untrained_checkpoint, tmp_path, option, place
):
    wanted = tmp_path / place
    (tmp_path / "folder").mkdir()
    outcome = d2defense(
        "scan", untrained_checkpoint, "--dataset", "d", "--output", tmp_path / "out", option, wanted
    )
    assert outcome.code == 4
    assert f"error: {wanted}: " in outcome.err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "folder").is_dir()


def test_a_report_that_cannot_be_written_any_more_is_no_wrong_usage(
    d2defense, specimen, own_data, tmp_path, monkeypatch
):
    """4 would say that nothing was scanned."""
    from d2defense.workflows.scan.driver import _Driver

    reports, out, scan = tmp_path / "reports", tmp_path / "out", _Driver.scan

    def scan_and_lose_the_folder(*arguments):
        results = scan(*arguments)
        reports.rmdir()
        reports.write_text("a file")
        return results

    monkeypatch.setattr(_Driver, "scan", scan_and_lose_the_folder)
    wanted = reports / "scan.xml"
    outcome = d2defense(
        "scan", specimen("clean_0"), *own_data, "--output", out, "--junit", wanted,
        "--isolation", "none", "--no-figures", *QUICK,
    )  # fmt: skip
    assert outcome.code == 2
    (line,) = outcome.err.splitlines()[-1:]
    assert f"error: {wanted}: " in line and str(out) in line
    assert "unforeseen" not in outcome.err and "usage:" not in outcome.err
    assert [result["verdict"] for result in load_results(out)] == ["clean"]
    assert (out / "report.html").is_file()


def test_a_result_that_cannot_be_written_is_no_wrong_usage(d2defense, specimen, own_data, tmp_path):
    wanted = tmp_path / "out" / "clean_0" / "result.json"
    wanted.mkdir(parents=True)
    outcome = d2defense(
        "scan", specimen("clean_0"), *own_data, "--output", tmp_path / "out",
        "--isolation", "none", "--no-figures", *QUICK,
    )  # fmt: skip
    assert outcome.code == 2
    assert f"error: {wanted}: " in outcome.err.splitlines()[-1]


def test_no_verdicts_of_an_earlier_scan_are_left(
    d2defense, untrained_checkpoint, own_data, tmp_path
):
    stale = [tmp_path / name for name in ("scan.json", "scan.sarif", "scan.xml")]
    for path in stale:
        path.write_text("clean")
    (tmp_path / "out").write_text("no folder")
    outcome = d2defense(
        "scan", untrained_checkpoint, *own_data, "--output", tmp_path / "out",
        "--json", stale[0], "--sarif", stale[1], "--junit", stale[2], *QUICK,
    )  # fmt: skip
    assert outcome.code == 4
    assert not any(path.exists() for path in stale)
