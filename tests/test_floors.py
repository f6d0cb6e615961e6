# SPDX-License-Identifier: Apache-2.0
"""The package's floors: a module imports from lower floors only, and never in a circle."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "d2defense"

# From the ground up. What stands on one line does not know of each other.
FLOORS = (
    ("files", "text", "devices", "memory", "parallel", "registry", "user_modules"),
    ("ops", "isolation", "config"),
    ("environment", "modeling", "data"),
    ("checkpoint", "statistics"),
    ("triggers",),
    ("attacks",),
    ("detection", "evaluation"),
    ("engine", "screening"),
    ("removal", "report"),
    ("workflows",),
    ("study",),
    ("benchmark",),
    ("cli",),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(module: str) -> set[str]:
    """Modules of the package that a module's source imports, wherever in it and for whatever."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                submodule = f"{base}.{alias.name}"
                names.add(submodule if submodule in MODULES else base)
    return names & set(MODULES)


def part(module: str) -> str:
    """The folder or file directly below the package that a module belongs to; "" for its root."""
    return [*module.split("."), ""][1]


GRAPH = {module: imported(module) for module in MODULES}


def test_every_part_of_the_package_has_a_floor():
    assert {part(module) for module in MODULES} - {""} == set(FLOOR_OF) - missing_parts()


def missing_parts() -> set[str]:
    return {name for name in FLOOR_OF if not any(part(module) == name for module in MODULES)}


def test_imports_go_down():
    upward = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in sorted(others)
        if part(module) and part(other) and part(module) != part(other)
        if FLOOR_OF[part(other)] >= FLOOR_OF[part(module)]
    ]
    assert not upward


def test_the_package_itself_imports_nothing_of_it():
    assert not GRAPH["d2defense"]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that import each other, by Tarjan's algorithm."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            circle = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(circle) > 1:
                found.append(sorted(circle))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]


def test_no_module_imports_itself_over_others():
    assert not circles(GRAPH)


def test_no_module_is_named_like_what_it_defines():
    alike = []
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {n.name for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef)}
        if module.rpartition(".")[2] in names:
            alike.append(module)
    assert not alike


@cache
def loaded_by(statement: str) -> set[str]:
    """Modules that a fresh interpreter has loaded after a statement."""
    program = f"import sys; {statement}; print(*sys.modules, sep='\\n')"
    command = [sys.executable, "-W", "ignore", "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    return set(ended.stdout.split())


@pytest.mark.parametrize(
    ("statement", "unwanted"),
    [
        (
            "import d2defense.checkpoint",
            ("engine", "evaluation", "detection", "removal", "report", "workflows", "study"),
        ),
        ("import d2defense.ops", ("modeling", "checkpoint")),
        ("import d2defense.isolation", ("checkpoint", "modeling", "ops")),
    ],
)
def test_lower_floors_load_nothing_from_above(statement, unwanted):
    loaded = loaded_by(statement)
    above = [name for name in unwanted if f"d2defense.{name}" in loaded]
    assert not above


def test_reading_untrusted_files_loads_no_more_than_it_needs():
    loaded = {part(name) for name in loaded_by("import d2defense.checkpoint") if name in MODULES}
    above = {name for name, floor in FLOOR_OF.items() if floor > FLOOR_OF["checkpoint"]}
    assert loaded >= {"checkpoint", "modeling", "text"}
    assert not loaded & (above | {"statistics", "data", "environment"})


def test_the_ground_floor_loads_no_detectron2():
    loaded = loaded_by("import d2defense.text, d2defense.files, d2defense.devices")
    assert "detectron2" not in loaded
