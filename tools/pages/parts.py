# SPDX-License-Identifier: Apache-2.0
"""What can be chosen by name: the parts in every registry."""

from __future__ import annotations

import inspect

from d2defense import registry
from d2defense.registry import Registry

from .markdown import page, table

INTRODUCTION = """\
What configs and options choose by name. A module of your own adds more:
[internals.md](../internals.md#how-to-extend)."""


def parts() -> str:
    """One section a registry."""
    sections = []
    for registered in vars(registry).values():
        if isinstance(registered, Registry):
            choices = registered.choices()
            rows = [
                [f"`{name}`", choices[name], f"`{inspect.getmodule(part).__name__}`"]
                for name, part in registered
            ]
            sections += [f"## {registered.kind}", table(("name", "what it is", "module"), rows)]
    return page("Parts by name", INTRODUCTION, *sections)
