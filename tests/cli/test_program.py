# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from d2defense.cli.program import COMMANDS
from d2defense.registry import REMOVAL_REGISTRY


def test_help_lists_the_commands(d2defense):
    outcome = d2defense("--help")
    assert outcome.code == 0
    for command in ("demo", "scan", "repair", "train", "evaluate", "calibrate", "dataset", "env"):
        assert f"\n    {command}" in outcome.out
    assert "exit codes" in outcome.out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_explains_itself(d2defense, command):
    outcome = d2defense(command, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"usage: d2defense {command}")
    assert len(outcome.out.splitlines()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_help_hides_what_libraries_tell_their_developers(command):
    """In a process of its own, since a library warns once, when it is first imported."""
    code = (
        f"from d2defense.cli.program import main; raise SystemExit(main(['{command}', '--help']))"
    )
    run = [sys.executable, "-c", code]
    finished = subprocess.run(run, capture_output=True, text=True, check=True)
    assert finished.stderr == ""


def test_the_name_of_before_still_works_and_says_so_in_one_line(d2defense):
    outcome = d2defense("renew", "--help")
    assert outcome.code == 0
    assert outcome.out.startswith("usage: d2defense repair")
    assert outcome.err == "d2defense renew is called d2defense repair now\n"


def test_help_of_a_repair_says_what_each_method_does(d2defense):
    help_text = d2defense("repair", "--help").out
    for name, line in REMOVAL_REGISTRY.choices().items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", help_text, re.MULTILINE), name


def test_version(d2defense):
    import d2defense as package

    assert d2defense("--version").out.strip() == package.__version__


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((), 2), (("scna",), 2), (("scan",), 4), (("repair", "x"), 2), (("train",), 2)],
)
def test_usage_errors(d2defense, arguments, code):
    outcome = d2defense(*arguments)
    assert outcome.code == code
    assert outcome.out == ""
    assert "usage: d2defense" in outcome.err
    assert "Traceback" not in outcome.err


def test_help_is_quick_because_it_imports_no_torch():
    code = "import sys; from d2defense.cli.program import main; main(['--help'])\n"
    code += "print('torch' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout.splitlines()[-1] == "False"


def test_threads_are_told_how_to_wait_before_torch_is_loaded():
    """It reads the variable once."""
    code = (
        "import os, sys\n"
        "from d2defense.cli import program\n"
        "load = program._module\n"
        "def module(name):\n"
        "    print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])\n"
        "    return load(name)\n"
        "program._module = module\n"
        "program.main(['env'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for given, policy in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        finished = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment | given
        )
        assert finished.stdout.splitlines()[0] == f"False {policy}"


def test_environment(d2defense):
    outcome = d2defense("env")
    assert outcome.code == 0
    for word in ("detectron2", "PyTorch", "d2defense operator"):
        assert word in outcome.out
