# SPDX-License-Identifier: Apache-2.0
"""The ``d2defense`` program."""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType, ModuleType
from typing import NoReturn

import d2defense

from .arguments import silence_developer_notices

# Each names a module beside this one with NAME, HELP, add_arguments(parser) and run(args).
COMMANDS = (
    "demo",
    "scan",
    "renew",
    "train",
    "evaluate",
    "calibrate",
    "dataset",
    "reproduce",
    "env",
)

EPILOG = """\
exit codes of a scan: 0 every checkpoint is clean, 1 at least one is backdoored or uncertain,
2 at least one could not be scanned, 3 there was nothing to scan, 4 wrong usage
"""


def main(arguments: Sequence[str] | None = None, program: str = "d2defense") -> int:
    """Run the command that the first argument names; the exit code is returned."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in COMMANDS:
        # Only the chosen command's module is imported and asked for its arguments: torch alone
        # takes seconds.
        return run_command(_module(arguments[0]), arguments[1:], f"{program} {arguments[0]}")
    parser = argparse.ArgumentParser(
        prog=program,
        description="Find backdoors in Detectron2 object detectors, and remove them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=d2defense.__version__)
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for name in COMMANDS:
        subparsers.add_parser(name, help=_module(name).HELP)
    parser.parse_args(arguments)
    return 0


def run_command(
    module: ModuleType, arguments: Sequence[str] | None = None, program: str | None = None
) -> int:
    """Parse ``arguments`` (the process's own if None) for one command and run it."""
    parser = CommandParser(
        prog=program,
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.usage_exit_code = getattr(module, "USAGE_EXIT_CODE", 2)
    module.add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        with _ending_on_termination():
            silence_developer_notices()
            return module.run(args)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors end with the exit code that the command has for them."""

    usage_exit_code = 2

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and end."""
        self.print_usage(sys.stderr)
        self.exit(self.usage_exit_code, f"{self.prog}: error: {message}\n")


@contextmanager
def _ending_on_termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does: after it has cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        print("terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"d2defense.cli.{name}")


if __name__ == "__main__":
    sys.exit(main())
