# SPDX-License-Identifier: Apache-2.0
"""The options of every command, from its argument parser."""

from __future__ import annotations

import argparse
from importlib import import_module

from d2defense.cli.program import ALIASES, COMMANDS, command_parser

from .markdown import page, table

INTRODUCTION = """\
What `d2defense COMMAND --help` says. `tools/scan.py`, `tools/train_net.py` and `tools/reproduce.py`
are the commands `scan`, `train` and `reproduce`. In brackets: the default. An option that takes
several words ends at the next option, so put it behind the checkpoints."""


def options() -> str:
    """One section a command.

    Raises:
        ValueError: an option has no help.
    """
    sections = [_section(name) for name in COMMANDS]
    older = ", ".join(f"`{old}` is `{now}`" for old, now in ALIASES.items())
    return page("Options of the commands", INTRODUCTION, f"Older names: {older}.", *sections)


def _section(name: str) -> str:
    module = import_module(f"d2defense.cli.{name}")
    parser = command_parser(module, f"d2defense {name}")
    parts = [f"## {name}", f"{module.HELP[0].upper()}{module.HELP[1:]}."]
    # argparse has no public way to its groups.
    rows = [
        [f"`{_usage(action)}`", _help(action, parser.prog)]
        for group in parser._action_groups
        for action in group._group_actions
        if not isinstance(action, argparse._HelpAction)
    ]
    if rows:
        parts.append(table(("option", "meaning"), rows))
    if parser.epilog:
        parts.append(f"{parser.epilog[0].upper()}{parser.epilog[1:]}.")
    return "\n\n".join(parts)


def _usage(action: argparse.Action) -> str:
    """``--option METAVAR ...`` or ``METAVAR ...``."""
    values = action.metavar or action.dest.upper()
    if action.choices and not action.metavar:
        values = "{" + ",".join(map(str, action.choices)) + "}"
    if action.nargs == 0:
        values = ""
    elif action.nargs in ("+", "*", argparse.REMAINDER):
        values += " ..."
    return " ".join([*action.option_strings[-1:], values]).strip()


def _help(action: argparse.Action, program: str) -> str:
    if not action.help:
        raise ValueError(f"{program}: {_usage(action)} has no help")
    text = action.help % {**vars(action), "prog": program}
    return f"{text}{'; needed' if action.required and action.option_strings else ''}"
