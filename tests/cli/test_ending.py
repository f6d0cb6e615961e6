# SPDX-License-Identifier: Apache-2.0
"""Whatever happens to a command, its exit code says so, and 1 is a verdict alone."""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from d2defense.cli import env, scan
from d2defense.cli.ending import run_to_end


def logged(err: str) -> Path:
    """The log that the only line on standard error names."""
    (line,) = err.strip().splitlines()
    return Path(re.search(r"the whole story is in (\S+)$", line)[1])


@pytest.fixture
def failing(monkeypatch):
    """A function that lets ``d2defense env`` and ``d2defense scan`` do what it is given."""

    def fail(action) -> None:
        for module in (env, scan):
            monkeypatch.setattr(module, "run", action)

    return fail


def run_python(code: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    """A program of its own, whose standard error is kept."""
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment |= options.pop("env", {})
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        stderr=subprocess.PIPE,
        env=os.environ | environment,
        text=True,
        check=False,
        **options,
    )


@pytest.fixture
def nobody_reads():
    """A descriptor to write to whose reader is gone."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


def test_what_nobody_foresaw_is_one_line_and_a_log(d2defense, failing, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(args):
        return {}["a category\nwithout a name"]

    failing(run)
    outcome = d2defense("env")
    assert outcome.code == 2
    assert outcome.err.startswith("d2defense env: error: unforeseen KeyError: ")
    log = logged(outcome.err)
    assert log.parent == tmp_path
    assert "Traceback" in log.read_text()
    assert "KeyError: 'a category" in log.read_text()
    assert log.stat().st_mode & 0o077 == 0  # in a folder of everybody's


@pytest.mark.parametrize("error", [MemoryError, RecursionError, AssertionError, UnicodeError])
def test_every_kind_of_exception_counts(d2defense, failing, monkeypatch, tmp_path, error):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(args):
        raise error("oh")

    failing(run)
    assert d2defense("scan", "x", "--output", tmp_path / "none").code == 2


def test_the_log_goes_into_the_output_folder(d2defense, failing, tmp_path):
    output = tmp_path / "output"

    def run(args):
        output.mkdir()
        raise RuntimeError("\x1b[2J")

    failing(run)
    outcome = d2defense("scan", "x", "--output", output)
    assert outcome.code == 2
    assert "\x1b" not in outcome.err
    assert logged(outcome.err) == output / "error.log"


def test_without_a_place_for_the_log_it_is_printed(d2defense, failing, monkeypatch):
    def run(args):
        raise RuntimeError("oh")

    def refuse(**arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    failing(run)
    with monkeypatch.context() as patch:
        patch.setattr("tempfile.mkstemp", refuse)
        outcome = d2defense("env")
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("d2defense env: error: unforeseen")


def test_one_is_a_verdict_alone(d2defense, failing):
    failing(lambda args: 1)
    assert d2defense("scan", "x", "--output", "y").code == 1
    assert d2defense("env").code == 2

    def leave(args):
        sys.exit(1)

    failing(leave)
    assert d2defense("scan", "x", "--output", "y").code == 2

    def leave_with_words(args):
        sys.exit("no such thing\n")

    failing(leave_with_words)
    outcome = d2defense("scan", "x", "--output", "y")
    assert (outcome.code, outcome.err) == (2, "no such thing\\n\n")


def test_a_command_that_cannot_be_imported_is_no_verdict(d2defense, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setitem(sys.modules, "d2defense.cli.scan", None)
    outcome = d2defense("scan", "x")
    assert outcome.code == 2
    assert "Traceback" in logged(outcome.err).read_text()


def test_an_interrupt(d2defense, failing):
    def run(args):
        raise KeyboardInterrupt

    failing(run)
    outcome = d2defense("scan", "x", "--output", "y")
    assert (outcome.code, outcome.err) == (130, "interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_cleans_up(d2defense, failing, number):
    cleaned = []

    def run(args):
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(True)

    failing(run)
    outcome = d2defense("env")
    assert (outcome.code, outcome.err) == (128 + number, "terminated\n")
    assert cleaned


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_a_terminal_without_a_character_shows_another(monkeypatch, encoding):
    shown = io.BytesIO()
    terminal = io.TextIOWrapper(shown, encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)

    def command() -> int:
        print("0.5 \N{EN DASH} \N{SNOWMAN}")
        return 0

    assert run_to_end(command, "test") == 0
    assert shown.getvalue() == b"0.5 ? ?\n"
    assert terminal.errors == "strict"


@pytest.mark.slow
def test_a_terminal_in_latin_1_from_the_outside(specimen, tmp_path):
    folder = tmp_path / "clean \N{EN DASH} \N{SNOWMAN}"
    shutil.copytree(specimen("clean_0"), folder)
    finished = run_python(
        "import sys; from d2defense.cli.program import main; sys.exit(main(sys.argv[1:]))",
        *("scan", "--list", "--isolation", "none", str(folder)),
        env={"PYTHONIOENCODING": "latin-1"},
        stdout=subprocess.PIPE,
    )
    assert finished.returncode == 0, finished.stderr
    assert "clean ? ?" in finished.stdout
    assert "Traceback" not in finished.stderr


VERDICT = (
    "import sys; from d2defense.cli.ending import run_to_end\n"
    "def command():\n"
    "    print(sys.argv[1])\n"
    "    return 1\n"
    "sys.exit(run_to_end(command, 'test'))\n"
)


# A short one waits in a buffer: at the interpreter's end the exit code would be 120.
@pytest.mark.parametrize("words", ["short", "long" * 20_000])
def test_a_reader_that_is_gone_is_met_with_silence(nobody_reads, words):
    finished = run_python(VERDICT, words, stdout=nobody_reads)
    assert (finished.returncode, finished.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_is_full_is_no_verdict(tmp_path):
    with open("/dev/full", "w") as full:
        finished = run_python(VERDICT, "words", stdout=full, env={"TMPDIR": str(tmp_path)})
    assert finished.returncode == 2
    assert "No space left" in logged(finished.stderr).read_text()
