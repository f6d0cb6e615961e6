# SPDX-License-Identifier: Apache-2.0
"""Parts by name: what comes along, what one adds, and what a wrong name is told."""

from __future__ import annotations

import subprocess
import sys

import pytest
from detectron2.config import CfgNode

from d2defense.registry import CONFIGURED, EFFECT_REGISTRY, Registry


@pytest.fixture
def registry() -> Registry:
    """One with two parts, the second of which brings keys."""
    made = Registry("tool", "d2defense.attacks.effects", "SHED.TOOLS")

    @made.register("saw")
    class Saw:
        """Cuts wood.

        Slowly.
        """

    @made.register("drill_2")
    class Drill:
        """Makes holes."""

        @staticmethod
        def add_config(node: CfgNode) -> None:
            # Of a hole, in millimetres.
            node.DIAMETER = 8

    return made


def test_choices_are_names_with_the_first_line_of_their_docstrings(registry):
    assert registry.choices() == {"saw": "Cuts wood.", "drill_2": "Makes holes."}
    # Whatever was imported first.
    assert [name for name, _ in registry] == ["drill_2", "saw"]


def test_a_name_gives_what_was_registered(registry):
    assert registry.get("saw").__name__ == "Saw"
    assert "saw" in registry
    assert "Saw" not in registry


def test_a_wrong_name_is_told_what_there_is(registry):
    with pytest.raises(ValueError, match="no tool 'hammer'; there are drill_2, saw"):
        registry.get("hammer")


@pytest.mark.parametrize("name", ["Saw", "a saw", "", "2saws", "saw.TOOTH"])
def test_names_are_plain_since_keys_are_made_of_them(registry, name):
    with pytest.raises(ValueError, match="tool"):
        registry.register(name)


def test_a_taken_name_is_refused(registry):
    with pytest.raises(ValueError, match=r"the tool 'saw' is there already: .*Saw"):
        registry.register("saw")(object)


def test_a_part_brings_its_keys_below_its_own_name(registry):
    cfg = CfgNode({"SHED": {"TOOLS": {"SHELF": 1}}})
    registry.add_config(cfg)
    assert cfg == CfgNode({"SHED": {"TOOLS": {"SHELF": 1, "DRILL_2": {"DIAMETER": 8}}}})


def test_keys_that_are_there_are_not_replaced(registry):
    cfg = CfgNode({"SHED": {"TOOLS": {"DRILL_2": "mine"}}})
    with pytest.raises(ValueError, match=r"SHED\.TOOLS\.DRILL_2 is taken"):
        registry.add_config(cfg)
    assert cfg.SHED.TOOLS.DRILL_2 == "mine"


@pytest.mark.parametrize("registry", CONFIGURED, ids=lambda registry: registry.kind)
def test_every_part_explains_itself_in_one_line(registry):
    lines = registry.choices()
    assert lines
    for name, line in lines.items():
        assert line.endswith("."), f"{registry.kind} {name}: {line!r}"
        assert len(line) <= 90


def test_what_comes_along_is_there_without_an_import_of_its_file():
    code = "from d2defense.registry import EFFECT_REGISTRY as r; print(r.get('ghost').__name__)"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.stdout == "Ghost\n", finished.stderr
    assert "disappearance" in EFFECT_REGISTRY
