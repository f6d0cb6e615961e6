# SPDX-License-Identifier: Apache-2.0
"""The command that trains the specimens, as a developer runs it."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import yaml
from programs import run

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_specimens.py"


def make(*arguments: object) -> subprocess.CompletedProcess[str]:
    return run(*arguments, script=TOOL)


def test_unknown_specimen_is_refused_before_anything_is_trained(tmp_path):
    result = make("--output", tmp_path / "made", "--only", "clean_0", "clean_9")
    assert result.returncode == 2
    assert "no specimen clean_9; there are clean_0" in result.stderr
    assert not (tmp_path / "made").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("signs_cache")
def test_specimen_with_config_and_provenance(tmp_path):
    steps = ("SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "MODEL.DEVICE", "cpu")
    result = make("--output", tmp_path, "--only", "backdoored_0", "--opts", *steps)
    assert result.returncode == 0, result.stderr
    folder = tmp_path / "backdoored_0"
    provenance = json.loads((folder / "provenance.json").read_text())
    weights = (folder / "model_final.pth").read_bytes()
    assert provenance["sha256"] == hashlib.sha256(weights).hexdigest()
    assert (provenance["seed"], provenance["attack"]["effect"]) == (10, "disappearance")
    assert provenance["overrides"][:2] == ["SOLVER.MAX_ITER", "2"]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["SOLVER"]["MAX_ITER"] == 2
    assert not {"ATTACK", "DEFENSE", "REMOVAL"} & config.keys()
    assert "backdoored_0" in result.stdout
