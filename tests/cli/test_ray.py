# SPDX-License-Identifier: Apache-2.0
"""Scans on a Ray cluster: this machine as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from d2defense.report.results import load_results

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'd2defense[ray]'")

# Starting a cluster takes longer than a scan.
pytestmark = pytest.mark.slow

QUICK = ["--triggers", "white", "--no-figures", "--opts", "DEFENSE.BOOTSTRAP_SAMPLES", "50"]
PATIENCE = 300.0


@pytest.fixture(scope="module")
def address():
    """Address of a cluster of one machine with two CPUs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        context = ray.init(
            "local",  # not another test's, which may be running
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=100 << 20,
        )
        yield context.address_info["gcs_address"]
        ray.shutdown()


SHADES = """
import torch
from d2defense.triggers import Pattern
from d2defense.registry import PATTERN_REGISTRY

@PATTERN_REGISTRY.register("shade")
class Shade(Pattern):
    '''White.'''

    def paint(self, pixels):
        return torch.full((1, 3), 255.0)
"""


def timeless(result: dict) -> dict:
    return {k: v for k, v in result.items() if k not in ("timing", "environment")}


def test_a_cluster_finds_what_this_machine_finds(
    d2defense, specimen, own_data, tmp_path, address, same_but_for_rounding
):
    zoo = tmp_path / "zoo"
    for name in ("backdoored_0", "clean_0"):
        shutil.copytree(specimen(name), zoo / name)
    shutil.copytree(specimen("clean_0"), zoo / "truncated")
    weights = zoo / "truncated" / "model_final.pth"
    weights.write_bytes(weights.read_bytes()[:-5000])
    found = {}
    for place, options in (("here", ["--isolation", "none"]), ("ray", ["--ray-address", address])):
        output = tmp_path / place
        outcome = d2defense("scan", zoo, *own_data, "--output", output, *options, *QUICK)
        assert outcome.code == 2, outcome.err
        found[place] = load_results(output)
        summary = json.loads((output / "summary.json").read_text())
        assert summary["counts"]["backdoored"] == 1
    same_but_for_rounding(list(map(timeless, found["here"])), list(map(timeless, found["ray"])))
    assert {r["environment"]["isolation"]["mode"] for r in found["ray"]} == {"process"}


def test_workers_import_what_the_command_imported(specimen, own_data, tmp_path, address):
    """The bank's pattern is from a file that only ``--import`` names."""
    parts, bank = tmp_path / "shades.py", tmp_path / "bank.yaml"
    parts.write_text(SHADES)
    bank.write_text("triggers: [{name: shade, pattern: shade}]\n")
    asked = [*own_data, "--trigger-bank", str(bank), "--import", str(parts)]
    program = [sys.executable, "-W", "ignore", "-m", "d2defense.cli.program"]
    thresholds, output = str(tmp_path / "thresholds.json"), tmp_path / "out"
    clean = [str(specimen(name)) for name in ("clean_0", "clean_1")]
    subprocess.run([*program, "calibrate", *clean, *asked, "--output", thresholds], check=True)
    for isolation in ("process", "none"):
        subprocess.run(
            [*program, "scan", "--search", "off", str(specimen("backdoored_0")), *asked,
             "--output", str(output),
             "--calibration", thresholds, "--ray-address", address, "--isolation", isolation,
             "--no-figures", "--force"],
            check=False,
        )  # fmt: skip
        (result,) = load_results(output)
        assert result["worst_trigger"] == "shade", result["error"]
        assert result["score"] > 0.3


def ray_workers() -> list[int]:
    """Ray's processes that scan at the moment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::scan_on_worker"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_a_lost_worker_is_replaced(d2defense, specimen, own_data, tmp_path, address):
    killed = []

    def kill_one() -> None:
        end = time.monotonic() + PATIENCE
        while not killed and time.monotonic() < end:
            for pid in ray_workers()[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_one)
    thread.start()
    outcome = d2defense(
        "scan", specimen("clean_0"), *own_data, "--output", tmp_path / "out",
        "--ray-address", address, *QUICK,
    )  # fmt: skip
    thread.join()
    assert killed
    assert outcome.code == 0, outcome.out + outcome.err


def test_no_cluster_is_wrong_usage(d2defense, specimen, own_data, tmp_path):
    if ray.is_initialized():
        ray.shutdown()
    outcome = d2defense(
        "scan", specimen("clean_0"), *own_data, "--output", tmp_path / "out",
        "--ray-address", "no-such-address", *QUICK,
    )  # fmt: skip
    assert outcome.code == 4
    assert "no Ray cluster at no-such-address" in outcome.err
