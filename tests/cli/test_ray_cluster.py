# SPDX-License-Identifier: Apache-2.0
"""Scans, zoos and benchmarks on a Ray cluster of several nodes, one of which is lost midway."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import yaml

from d2defense.report.results import load_results
from d2defense.study.results import ResultStore

pytest.importorskip("ray", reason="Ray is not installed: pip install 'd2defense[ray]'")
# Ray brings its own copy.
psutil = pytest.importorskip("psutil")

pytestmark = pytest.mark.slow

QUICK = ["--triggers", "white", "--no-figures", "--opts", "DEFENSE.BOOTSTRAP_SAMPLES", "50"]
PATIENCE = 300.0


@pytest.fixture
def cluster(monkeypatch):
    """A head that computes nothing, and two nodes with a CPU each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A node that is lost is noticed after a few of these.
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    small = {"object_store_memory": 100 << 20}
    started = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small}
    )
    for _ in range(2):
        started.add_node(num_cpus=1, **small)
    yield started
    started.shutdown()


def busy_node(cluster):
    """A node that works on something; None if there is none."""
    for node in cluster.worker_nodes:
        for raylet in node.all_processes["raylet"]:
            for child in psutil.Process(raylet.process.pid).children():
                with suppress(psutil.Error):
                    title = " ".join(child.cmdline())
                    if title.startswith(("ray::scan_on_worker", "ray::_call")):
                        return node
    return None


@contextmanager
def losing_a_node(cluster) -> Iterator[None]:
    """Take the first node away that works, without a word to Ray."""
    lost, is_over = [], threading.Event()

    def lose_one() -> None:
        end = time.monotonic() + PATIENCE
        while not lost and not is_over.is_set() and time.monotonic() < end:
            node = busy_node(cluster)
            if node is not None:
                time.sleep(1.0)  # midway
                cluster.remove_node(node, allow_graceful=False)
                lost.append(node)
            time.sleep(0.2)

    thread = threading.Thread(target=lose_one)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
    assert lost


def lasting(result: dict) -> dict:
    """What does not depend on where and when a checkpoint was scanned."""
    return {k: v for k, v in result.items() if k not in ("timing", "environment")}


def test_a_scan_ends_as_without(
    d2defense, specimen, own_data, tmp_path, cluster, same_but_for_rounding
):
    zoo = tmp_path / "zoo"
    for name in ("backdoored_0", "clean_0", "clean_1"):
        shutil.copytree(specimen(name), zoo / name)
    with losing_a_node(cluster):
        outcome = d2defense(
            "scan", zoo, *own_data, "--output", tmp_path / "ray",
            "--ray-address", cluster.address, *QUICK,
        )  # fmt: skip
    assert outcome.code == 1, outcome.out + outcome.err
    d2defense("scan", zoo, *own_data, "--output", tmp_path / "here", "--isolation", "none", *QUICK)
    found, expected = (load_results(tmp_path / place) for place in ("ray", "here"))
    assert len(found) == 3
    same_but_for_rounding(list(map(lasting, found)), list(map(lasting, expected)))
    assert json.loads((tmp_path / "ray" / "summary.json").read_text())["counts"]["error"] == 0


def measured(folder: Path) -> dict:
    """Values by detector, method and metric."""
    return {(row.detector, row.method, row.metric): row.value for row in ResultStore(folder).read()}


def test_a_benchmark_ends_as_without(d2defense, tmp_path, cluster, same_but_for_rounding):
    run = ["benchmark", "run", "--methods", "bank", "distscan", "--only", "clean_*"]
    run += ["--num-images", "10", "--results"]
    with losing_a_node(cluster):
        outcome = d2defense(*run, tmp_path / "ray", "--ray-address", cluster.address)
    assert outcome.code == 0, outcome.out + outcome.err
    assert "6 measured, 0 were there, 0 failed" in outcome.out
    d2defense(*run, tmp_path / "here")
    expected = measured(tmp_path / "here")
    assert {detector for detector, *_ in expected} == {"clean_0", "clean_1", "clean_2"}
    same_but_for_rounding(measured(tmp_path / "ray"), expected)
    again = d2defense(*run, tmp_path / "ray", "--workers", "2")
    assert "0 measured, 6 were there" in again.out


def test_a_zoo_ends_as_without(d2defense, tmp_path, cluster):
    manifest = {
        "name": "short",
        "data": {"train": "synth_signs_val", "test": "synth_signs_val",
                 "defender": "synth_signs_defender"},
        "control": ["specimen://clean_1"],
        "detectors": {"fpn": {"config": "SynthSigns/faster_rcnn_tiny_fpn.yaml"}},
        "schedules": {"scratch": {"overrides": {"SOLVER.MAX_ITER": 12}}},
        "attacks": {},
        "groups": [{"truth": "clean", "seeds": [0]}],
    }  # fmt: skip
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(manifest))
    with losing_a_node(cluster):
        outcome = d2defense(
            "zoo", "build", path, "--output", tmp_path / "ray", "--ray-address", cluster.address
        )
    assert outcome.code == 0, outcome.out + outcome.err
    d2defense("zoo", "build", path, "--output", tmp_path / "here")
    found, expected = (
        json.loads((tmp_path / place / "index.json").read_text())["detectors"]
        for place in ("ray", "here")
    )
    assert [each["sha256"] for each in found] == [each["sha256"] for each in expected]
    assert len(found) == 1
