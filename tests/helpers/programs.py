# SPDX-License-Identifier: Apache-2.0
"""Programs of d2defense in processes of their own, without the seconds that imports take.

They are forked from a process that has loaded what they would import, and nothing else: it is not
the one that runs the tests, so that nothing of a test is in them.
"""

from __future__ import annotations

import atexit
import importlib.util
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from types import ModuleType

_LOADED = (
    "d2defense.engine",
    "d2defense.study.runner",
    "d2defense.workflows.calibration",
    "d2defense.workflows.evaluation",
    "d2defense.workflows.repair",
    "d2defense.workflows.scan.confined",
    "d2defense.workflows.train",
)
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(list(_LOADED))
# Patience with machines that have other work to do.
_PATIENCE = 300.0


class Program:
    """A running program.

    Args:
        arguments: of ``d2defense``.
        script: run this file with the arguments instead.

    Attributes:
        pid: of its process.
    """

    def __init__(self, *arguments: object, script: Path | None = None) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("out", "err")]
        self._process = _CONTEXT.Process(
            target=_run,
            args=(self.arguments, script, self._outputs, os.getcwd(), dict(os.environ)),
        )
        self._process.start()
        self.pid: int = self._process.pid

    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    def send_signal(self, number: int) -> None:
        """Send a signal to its process."""
        os.kill(self.pid, number)

    def end(self, timeout: float = _PATIENCE) -> CompletedProcess[str]:
        """Wait for its end: exit code, standard output and standard error.

        Raises:
            TimeoutExpired: it does not end; it is killed.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        output, errors = (path.read_text() if path.exists() else "" for path in self._outputs)
        self._folder.cleanup()
        if code is None:
            raise TimeoutExpired(self.arguments, timeout, output, errors)
        return CompletedProcess(self.arguments, code, output, errors)


def run(*arguments: object, script: Path | None = None) -> CompletedProcess[str]:
    """Run ``d2defense``, or a script, to its end."""
    return Program(*arguments, script=script).end()


def as_module(script: Path) -> ModuleType:
    """A Python file that lies in no package, as a module of the tests' own process."""
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look themselves up there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _run(
    arguments: Sequence[str],
    script: Path | None,
    outputs: Sequence[Path],
    folder: str,
    environment: Mapping[str, str],
) -> None:
    """What the process does."""
    missing = set(_LOADED) - sys.modules.keys()
    assert not missing, f"not loaded before: {missing}"
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("ignore")
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # Names of datasets stand for folders that the environment chose when they were registered.
    from d2defense.data import register_synth_signs

    register_synth_signs()
    # As in a program that was started: how it starts processes, and what it does at its end.
    multiprocessing.set_start_method(None, force=True)
    sys.argv = [str(script or "d2defense"), *arguments]
    try:
        if script:
            runpy.run_path(str(script), run_name="__main__")
        else:
            from d2defense.cli.program import main

            sys.exit(main())
    finally:
        atexit._run_exitfuncs()
