# SPDX-License-Identifier: Apache-2.0
"""The ``d2defense`` program."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import d2defense
from d2defense.user_modules import UserModuleError, import_modules

from .arguments import silence_developer_notices
from .ending import FAILED, VERDICT, run_to_end

# Each names a module beside this one with NAME, HELP, add_arguments(parser) and run(args).
COMMANDS = (
    "demo",
    "scan",
    "repair",
    "screen",
    "train",
    "evaluate",
    "calibrate",
    "dataset",
    "zoo",
    "benchmark",
    "reproduce",
    "env",
)

# Names of before that still work.
ALIASES = {"renew": "repair"}

EPILOG = """\
exit codes of a scan: 0 every checkpoint is clean, 1 at least one is backdoored or uncertain,
2 at least one could not be scanned, 3 there was nothing to scan, 4 wrong usage
"""


def main(arguments: Sequence[str] | None = None, program: str = "d2defense") -> int:
    """Run the command that the first argument names; the exit code is returned."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] in ALIASES:
        now = ALIASES[arguments[0]]
        print(f"{program} {arguments[0]} is called {program} {now} now", file=sys.stderr)
        arguments[0] = now
    if arguments and arguments[0] in COMMANDS:
        return run_command(arguments[0], arguments[1:], f"{program} {arguments[0]}")
    return run_to_end(lambda: _overview(arguments, program), program)


def _overview(arguments: list[str], program: str) -> int:
    """What the program says when no command is named."""
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
    name: str, arguments: Sequence[str] | None = None, program: str | None = None
) -> int:
    """Parse ``arguments`` (the process's own if None) for one command and run it.

    Args:
        name: of a module beside this one. Only that is imported and asked for its arguments: torch
            alone takes seconds. Its exit code 1 is a verdict if it says ``GIVES_VERDICT``.
        arguments: what follows the command's name.
        program: how messages call the command; the name of the script if None.

    Returns:
        The exit code (:func:`~d2defense.cli.ending.run_to_end`).
    """
    program = program or Path(sys.argv[0]).name
    args = argparse.Namespace()

    def command() -> int:
        # Read when torch is loaded. Beside other processes, threads that wait actively keep the
        # processor from the one that they wait for.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        module = _module(name)
        given = list(sys.argv[1:] if arguments is None else arguments)
        # What takes long and needs no arguments read goes on meanwhile.
        getattr(module, "begin", lambda arguments: None)(given)
        command_parser(module, program, given).parse_args(given, args)
        silence_developer_notices()
        code = module.run(args)
        if code == VERDICT and not getattr(module, "GIVES_VERDICT", False):
            return FAILED
        return code

    return run_to_end(command, program, lambda: getattr(args, "output", None))


def command_parser(
    module: ModuleType, program: str | None = None, arguments: Sequence[str] = ()
) -> CommandParser:
    """The parser of one command's arguments.

    Args:
        module: of the command.
        program: how messages call it.
        arguments: that will be parsed; modules that they name after ``--import`` are imported
            first, since what these register has a say in the options.
    """
    parser = CommandParser(
        prog=program,
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.usage_exit_code = getattr(module, "USAGE_EXIT_CODE", 2)
    _import_modules(parser, arguments)
    module.add_arguments(parser)
    return parser


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors end with the exit code that the command has for them."""

    usage_exit_code = 2

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and end."""
        self.print_usage(sys.stderr)
        self.exit(self.usage_exit_code, f"{self.prog}: error: {message}\n")


def _import_modules(parser: CommandParser, arguments: Sequence[str]) -> None:
    """Add ``--import``, and do what it says; a module that cannot be imported is wrong usage."""
    options = {
        "dest": "imports",
        "action": "append",
        "default": [],
        "metavar": "MODULE",
        "help": "a module of your own that registers attacks, patterns, removal and screening "
        "methods, decisions or experiments: its name, or the path of its file; repeatable",
    }
    early = CommandParser(prog=parser.prog, add_help=False, allow_abbrev=False)
    early.usage_exit_code = parser.usage_exit_code
    for each in (early, parser):
        each.add_argument("--import", **options)
    names = early.parse_known_args(arguments)[0].imports
    if names:
        silence_developer_notices()
    try:
        import_modules(names)
    except UserModuleError as error:
        parser.error(f"--import: {error}")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"d2defense.cli.{name}")


if __name__ == "__main__":
    sys.exit(main())
