# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from programs import as_module

CORPUS = as_module(Path(__file__).with_name("corpus.py"))


# Loops over millions of opcodes, which coverage's tracer would make ten times as slow.
LONG_LOOPS = ("_endless", "_nested_lists")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that take a ``hostile_case`` get each of the corpus in turn."""
    if "hostile_case" in metafunc.fixturenames:
        cases = [
            pytest.param(case, id=name, marks=[pytest.mark.no_cover] * name.endswith(LONG_LOOPS))
            for name, case in CORPUS.CASES.items()
        ]
        metafunc.parametrize("hostile_case", cases)


@pytest.fixture
def corpus() -> ModuleType:
    """The corpus of hostile checkpoints."""
    return CORPUS


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A path that exists only after something untrusted was executed."""
    return tmp_path / "executed"
