# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


class Payload:
    """An object whose unpickling creates a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return open, (str(self.canary), "w")


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A path that exists only after something untrusted was executed."""
    return tmp_path / "executed"


@pytest.fixture
def payload(canary: Path) -> Payload:
    """What must never be unpickled."""
    return Payload(canary)


@pytest.fixture
def output_folder(tmp_path: Path) -> Callable[..., Path]:
    """A function that makes a folder with the named files; their contents do not matter."""

    def make(name: str, *files: str, **contents: str) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            (folder / file).write_text("")
        for file, content in contents.items():
            (folder / file).write_text(content)
        return folder

    return make
