# SPDX-License-Identifier: Apache-2.0
"""A scan where the system lacks a protection: told, or not begun."""

from __future__ import annotations

import shutil

import pytest
from programs import run

from d2defense.isolation import Server
from d2defense.report.results import load_results

QUICK = ["--triggers", "white", "--no-figures", "--opts", "DEFENSE.BOOTSTRAP_SAMPLES", "50"]
#: Takes Landlock away from the processes that scan.
WITHOUT_LANDLOCK = """
from d2defense.isolation import landlock
from d2defense.isolation.errors import ProtectionError

def refuse(*arguments):
    raise ProtectionError(38, "landlock: Function not implemented")

landlock.restrict = refuse
"""


@pytest.fixture
def scan(specimen, own_data, tmp_path):
    """Scans two checkpoints in a program of its own: its exit code and standard error."""
    for name in ("clean_0", "clean_1"):
        shutil.copytree(specimen(name), tmp_path / "zoo" / name)

    def scan(*options: object) -> tuple[int, str]:
        ended = run(
            "scan", "--search", "off", tmp_path / "zoo", *own_data,
            "--output", tmp_path / "out", *options, *QUICK,
        )  # fmt: skip
        return ended.returncode, ended.stderr

    return scan


@pytest.fixture
def without_landlock(tmp_path) -> list[str]:
    """Options that take a protection away."""
    module = tmp_path / "without_landlock.py"
    module.write_text(WITHOUT_LANDLOCK)
    return ["--import", str(module)]


def test_nothing_is_scanned_where_a_required_protection_is_missing(
    scan, without_landlock, tmp_path
):
    code, told = scan("--require-isolation", *without_landlock)
    assert code == 4, told
    last = told.strip().splitlines()[-1]
    assert "does not offer every protection" in last
    assert "landlock: Function not implemented" in last
    assert not (tmp_path / "out").exists()


def test_what_is_missing_is_told_once_and_recorded_of_each(scan, without_landlock, tmp_path):
    code, told = scan(*without_landlock)
    assert code in (0, 1), told
    lines = [line for line in told.splitlines() if "protections that this system" in line]
    assert len(lines) == 1, told
    assert "landlock: Function not implemented" in lines[0]
    results = load_results(tmp_path / "out")
    assert len(results) == 2
    for result in results:
        isolation = result["environment"]["isolation"]
        assert isolation["files"] is None
        assert "landlock: Function not implemented" in isolation["missing"]
        assert isolation["system_calls"] == "seccomp"


@pytest.mark.slow
def test_a_scan_begins_where_no_required_protection_is_missing(scan, tmp_path):
    server = Server()
    missing = server.protections()["missing"]
    server.close()
    code, told = scan("--require-isolation")
    if missing:
        assert code == 4, told
        return
    assert code in (0, 1), told
    assert "protections" not in told
    for result in load_results(tmp_path / "out"):
        assert result["environment"]["isolation"]["missing"] == []


def test_no_protection_can_be_required_of_a_scan_without_processes(scan):
    code, told = scan("--require-isolation", "--isolation", "none")
    assert code == 4
    assert "offers no protection" in told
