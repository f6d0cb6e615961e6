# SPDX-License-Identifier: Apache-2.0
"""The whole corpus in one scan: every hostile checkpoint is an error, the honest one is judged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest

from d2defense.checkpoint import find_checkpoints
from d2defense.report.results import load_results

QUICK = ["--search", "off", "--triggers", "white", "--max-images", "8"]
QUICK += ["--opts", "DEFENSE.BOOTSTRAP_SAMPLES", "50"]
# Each checkpoint gets a process of its own, and the machine may be busy.
SECONDS_PER_CHECKPOINT = 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_scan_of_the_corpus(corpus, specimen, canary, tmp_path, make_coco_dataset, sign_scenes):
    source = make_coco_dataset(sign_scenes(8))
    zoo = tmp_path / "zoo"
    paths = []
    for name, make in corpus.CASES.items():
        folder = zoo / name
        folder.mkdir(parents=True)
        paths.append(make(corpus.CaseFolder(folder, canary, specimen("clean_0"))) or folder)
    good = shutil.copytree(specimen("clean_0"), zoo / "honest")
    expected = find_checkpoints([*paths, good])
    before = sorted(path for path in tmp_path.rglob("*"))
    work = tmp_path / "work"
    work.mkdir()
    start = time.monotonic()
    result = subprocess.run(
        [
            *(sys.executable, "-m", "d2defense.cli.program", "scan", *map(str, paths), str(good)),
            *("--dataset-json", source.json_file, "--image-root", source.image_root),
            *("--output", str(tmp_path / "out"), "--no-figures", *QUICK),
        ],
        cwd=work,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=SECONDS_PER_CHECKPOINT * len(expected),
        check=False,
    )
    assert time.monotonic() - start < SECONDS_PER_CHECKPOINT * len(expected)
    assert result.returncode == 2, result.stderr[-2000:]
    assert "Traceback" not in result.stdout + result.stderr
    assert not canary.exists()
    assert not list(work.iterdir())
    outside = [path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "out")]
    assert sorted(path for path in outside if path != work) == before
    results = {result["name"]: result for result in load_results(tmp_path / "out")}
    assert set(results) == {source.name for source in expected}
    honest = results.pop("honest")
    assert (honest["verdict"], honest["error"]) == ("clean", None), honest["reason"]
    for hostile in results.values():
        assert hostile["verdict"] == "error"
        assert hostile["error"].isprintable()
        assert "memory" not in hostile["error"] and "did not end" not in hostile["error"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img src=x" not in page
    assert "\x1b" not in page + result.stdout
