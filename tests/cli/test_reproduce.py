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
    ],
)
def test_what_does_not_exist_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["reproduce", "--output", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err


def start(output: Path, *options: str) -> subprocess.Popen[str]:
    command = [*PROGRAM, "--quick", "--output", str(output), *options]
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


@pytest.mark.slow
def test_quick_makes_every_table_and_figure(tmp_path: Path) -> None:
    done = start(tmp_path)
    output, _ = done.communicate(timeout=2400)
    assert done.returncode == 0
    report = (tmp_path / "report.md").read_text()
    assert "Incomplete" not in report
    tables = {path.stem for path in (tmp_path / "tables").glob("*.csv")}
    assert tables >= {"table1", "table2", "table2_recovery", "figure4", "population"}
    for path in (tmp_path / "figures").glob("*.png"):
        assert f"figures/{path.name}" in report
    # What the specimens are known for.
    before = json.loads((tmp_path / "steps/evaluate/faster_rcnn_fpn_oda_0.json").read_text())
    assert before["result"]["asr"] == pytest.approx(0.699, abs=0.01)
    bars = {line.split("|")[1].strip(): line for line in output.splitlines() if line[:1] == "|"}
    for what in ("recovered by the paper's renewal", "recovered by ours"):
        assert "| met" in bars[f"{what}, Faster R-CNN FPN"]
