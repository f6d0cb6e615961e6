# SPDX-License-Identifier: Apache-2.0
"""``d2defense env``: show the versions that matter, for a report of a problem."""

from __future__ import annotations

import argparse

NAME = "env"
HELP = "show versions of Detectron2, torch and the compiled operator"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments: there are none."""


def run(args: argparse.Namespace) -> int:
    """Print Detectron2's own report, then d2defense's version and how its operator was built."""
    from detectron2.utils.collect_env import collect_env_info
    from tabulate import tabulate

    import d2defense
    from d2defense.ops import build_info, extension_available

    print(collect_env_info())
    rows = [("d2defense", d2defense.__version__)]
    if extension_available():
        rows.append(("d2defense operator", "compiled (d2defense._C)"))
        rows.extend((f"  {key.replace('_', ' ')}", _shown(v)) for key, v in build_info().items())
    else:
        rows.append(("d2defense operator", "not compiled: the slower PyTorch reference is used"))
    print(tabulate(rows))
    return 0


def _shown(value: object) -> str:
    """A value of :func:`d2defense.ops.build_info` on one line."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else str(value)
