# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from d2defense.cli.program import main

PROGRAM = [sys.executable, "tools/reproduce.py"]
ROOT = Path(__file__).resolve().parents[2]


def test_list_prints_the_open_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["reproduce", "--quick", "--output", str(tmp_path), "--list", "--only", "table1"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert "evaluate/faster_rcnn_fpn_clean_0" in lines
    assert lines.index("use/clean_0") < lines.index("scan/faster_rcnn_fpn_clean_0")


def test_report_only_does_no_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce", "--quick", "--output", str(tmp_path), "--report-only"]) == 0
    assert "not measured" in capsys.readouterr().out
    assert "steps have no result" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / "steps").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "table9"], "no table9; there are table1"),
        (["--detectors", "yolo"], "no yolo; there are faster_rcnn_fpn"),
        (["--seeds", "9"], "9 is not in 1..3"),
        (["--photos", "nowhere"], "no annotations/train.json"),
        (["--profile", "huge"], "--profile: 'huge': neither a file nor one of paper, quick, small"),
        (["--profile", "gone.yaml"], "--profile: gone.yaml: cannot be read"),
        (["--defender-images", "9"], "this profile has a defender's set of its own"),
        (["--list", "--repair-opts", "REMOVAL.NO_SUCH", "1"], "Non-existent key: REMOVAL.NO_SUCH"),
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["reproduce", "--output", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


OWN = """
name: mine
base: tiny
seeds: [5]
attacks: {green: {title: green, trigger: {ATTACK.TRIGGER.PATCH.COLOR: [0, 255, 0]}}}
variants: {green: {SOLVER.MAX_ITER: 5}}
"""
# Builds on none.
WHOLE = """
name: mine
detectors: {fpn: {title: FPN, config: SynthSigns/faster_rcnn_tiny_fpn}}
seeds: [0]
defender: {name: synth_signs_defender}
defender_images: 200
test: {name: synth_signs_val}
pool: synth_signs_pool
sizes: [25]
steps: [90]
"""


def test_a_profile_of_one_s_own_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(OWN)
    options = ["--output", str(tmp_path / "out"), "--list", "--detectors", "mask_rcnn_fpn"]
    assert main(["reproduce", "--profile", str(profile), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("train/mask_rcnn_fpn_clean_5") < lines.index("train/mask_rcnn_fpn_green_5")
    assert not any("faster_rcnn" in line or "black" in line for line in lines)


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ("sead: [1]", "the file: Additional properties are not allowed ('sead' was unexpected)"),
        ("repair: {REMOVAL.NO_SUCH: 1}", "repair: cannot override the configuration: Non-existent"),
        ("seeds: [1", "cannot be read: while parsing a flow sequence"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: str, complaint: str
) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text(OWN + more)
    options = ["--output", str(tmp_path / "out"), "--list"]
    assert main(["reproduce", "--profile", str(profile), *options]) == 2
    (said,) = (line for line in capsys.readouterr().err.splitlines() if "error: " in line)
    assert f"error: --profile: {profile}: {complaint}" in said
    assert not (tmp_path / "out").exists()


def test_photos_need_a_profile_that_says_how_to_train_on_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "annotations").mkdir()
    for name in ("train", "val", "test"):
        (tmp_path / "annotations" / f"{name}.json").touch()
    profile = tmp_path / "mine.yaml"
    profile.write_text(WHOLE)
    options = ["--output", str(tmp_path / "out"), "--list", "--photos", str(tmp_path)]
    assert main(["reproduce", *options, "--only", "photos"]) == 0
    assert "train/photos_oda_0" in capsys.readouterr().out
    assert main(["reproduce", *options, "--profile", str(profile)]) == 2
    assert "does not say how to train on photos" in capsys.readouterr().err


def start(output: Path, *options: str) -> subprocess.Popen[str]:
    profile = [] if "--profile" in options else ["--quick"]
    command = [*PROGRAM, *profile, "--output", str(output), *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def processes_of(output: Path) -> list[str]:
    """Command lines of running processes, workers among them, whose output is in a folder."""
    found = []
    for link in Path("/proc").glob("[0-9]*/fd/1"):
        try:
            if str(output) in os.readlink(link):
                found.append(str(link))
        except OSError:
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs Linux's /proc")
def test_a_killed_study_goes_on_and_leaves_nothing_behind(tmp_path: Path) -> None:
    killed = start(tmp_path, "--only", "table1")
    first = tmp_path / "steps" / "use" / "clean_0.json"
    deadline = time.monotonic() + 120
    while not first.exists():
        assert time.monotonic() < deadline, "no step was done"
        time.sleep(0.1)
    time.sleep(2)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("steps/*/*.json")}
    deadline = time.monotonic() + 20
    while processes_of(tmp_path):
        assert time.monotonic() < deadline, "workers outlive the study"
        time.sleep(0.1)

    again = start(tmp_path, "--only", "table1")
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0
    assert "ASR before, Faster R-CNN FPN" in output
    assert {path: path.stat().st_mtime_ns for path in done} == done


# The quick one with repairs of a few steps: what is made of their results is the same.
SHORT = """
name: short
base: quick
defender_images: 60
figure_points: [20]
comparison:
  REMOVAL.SOLVER.BASE_LR: 0.0001
  REMOVAL.RENEWED_LR_FACTOR: 40.0
  REMOVAL.SOLVER.MAX_ITER: 40
detectors:
  faster_rcnn_fpn:
    title: Faster R-CNN FPN
    config: SynthSigns/faster_rcnn_tiny_fpn
    groups: [[rpn], [box_head], [box_predictor], [box_head, box_predictor]]
    specimens: true
    repair: {REMOVAL.SOLVER.MAX_ITER: 60}
"""


@pytest.mark.slow
def test_a_study_makes_every_table_and_figure(tmp_path: Path) -> None:
    profile, output = tmp_path / "short.yaml", tmp_path / "out"
    profile.write_text(SHORT)
    done = start(output, "--profile", str(profile))
    printed, _ = done.communicate(timeout=1800)
    assert done.returncode == 0
    report = (output / "report.md").read_text()
    assert "Incomplete" not in report
    tables = {path.stem for path in (output / "tables").glob("*.csv")}
    assert tables >= {"table1", "table2", "table2_recovery", "figure4", "population"}
    for path in (output / "figures").glob("*.png"):
        assert f"figures/{path.name}" in report

    def asr(step: str) -> float:
        measured = json.loads((output / "steps/evaluate" / f"{step}.json").read_text())
        return measured["result"]["asr"]

    # What the specimens are known for.
    before = asr("faster_rcnn_fpn_oda_0")
    assert before == pytest.approx(0.699, abs=0.01)
    assert asr("faster_rcnn_fpn_oda_0/ours") < before / 2
    bars = {line.split("|")[1].strip(): line for line in printed.splitlines() if line[:1] == "|"}
    for what in ("recovered by the paper's renewal", "recovered by ours"):
        assert {"met", "missed"} & set(bars[f"{what}, Faster R-CNN FPN"].replace("|", "").split())
