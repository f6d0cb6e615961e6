# SPDX-License-Identifier: Apache-2.0
"""One word for one thing: no name stands for two of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "d2defense"


def class_names(tree: ast.Module) -> Iterator[str]:
    return (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def places(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """For each class the modules that define one of that name."""
    found: dict[str, list[str]] = {}
    for module, tree in trees.items():
        for name in class_names(tree):
            found.setdefault(name, []).append(module)
    return found


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def test_two_classes_of_one_name_are_found():
    trees = {"a.py": ast.parse("class A: ..."), "b.py": ast.parse("class B:\n class A: ...")}
    assert places(trees) == {"A": ["a.py", "b.py"], "B": ["b.py"]}


def test_no_two_classes_share_a_name(trees):
    assert len(trees) > 100
    assert {name: where for name, where in places(trees).items() if len(where) > 1} == {}


# Detector parts and their key, which only an adapter may know: others ask the adapter.
OF_ADAPTERS = {"roi_heads", "rpn_head", "proposal_generator", "NUM_CLASSES"}


def parts_named(tree: ast.Module) -> set[str]:
    """Attributes of detectors and configurations that code reads or calls."""
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} & OF_ADAPTERS


def test_a_part_that_code_names_is_found():
    assert parts_named(ast.parse("cfg.MODEL.ROI_HEADS.NUM_CLASSES; a = 'roi_heads'")) == {
        "NUM_CLASSES"
    }


def test_only_adapters_know_what_a_detector_is_made_of(trees):
    # The default of a key that is our own; a published method that is about a box predictor.
    declared = {"config/defaults.py", "benchmark/methods/detect/mm_bd.py"}
    named = {
        module: parts_named(tree)
        for module, tree in trees.items()
        if not module.startswith("modeling/") and module not in declared
    }
    assert {module: names for module, names in named.items() if names} == {}
