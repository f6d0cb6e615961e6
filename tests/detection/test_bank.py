# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import jsonschema
import PIL.Image
import pytest
from programs import run

from d2defense.detection import TriggerBankError, load_bank, select_triggers
from d2defense.detection.bank_format import bank_schema
from d2defense.triggers import Patch


@pytest.fixture
def bank_file(tmp_path):
    def write(text: str):
        path = tmp_path / "bank.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_the_default_bank_is_five_plain_patches():
    assert load_bank() == (
        Patch("white", color=(255, 255, 255)),
        Patch("black", color=(0, 0, 0)),
        Patch("grey", color=(128, 128, 128)),
        Patch("random_color", pattern="random_color"),
        Patch("noise", pattern="noise"),
    )
    assert select_triggers() == load_bank()


def test_the_wide_bank_holds_hundreds_of_different_patches():
    bank = load_bank("wide")
    assert len(bank) == 222
    assert len({trigger.fingerprint for trigger in bank}) == len(bank)
    by_name = {trigger.name: trigger for trigger in bank}
    assert by_name["red_0.2_top_left"] == Patch(
        "red_0.2_top_left",
        color=(255, 0, 0),
        size=(0.2, 0.2),
        placement="inside",
        position=(0.0, 0.0),
    )


def test_every_key_of_an_entry(bank_file, tmp_path):
    sticker = tmp_path / "stickers" / "cat.png"
    sticker.parent.mkdir()
    PIL.Image.new("RGB", (4, 4), (1, 2, 3)).save(sticker)
    first, second = load_bank(
        bank_file(
            """
            triggers:
              - {name: a, pattern: checkerboard, color: [1, 2, 3], second_color: [4, 5, 6],
                 cells: 7, size: [8, 9], size_unit: pixels, position: [0.25, 1], opacity: 0.5,
                 seed: 10}
              - {name: b, image: stickers/cat.png, position: background}
            """
        )
    )
    assert first == Patch(
        "a", seed=10, pattern="checkerboard", color=(1, 2, 3), second_color=(4, 5, 6), cells=7,
        size=(8.0, 9.0), size_unit="pixels", position=(0.25, 1.0), opacity=0.5,
    )  # fmt: skip
    assert (second.pattern, second.placement) == ("image", "background")
    assert second.image == sticker.read_bytes()


def test_a_grid_is_every_combination_in_order(bank_file):
    bank = load_bank(
        bank_file(
            """
            triggers:
              - name: "{color}-{size}-{opacity}"
                grid:
                  color: {red: [255, 0, 0], blue: [0, 0, 255]}
                  size: [0.1, [0.2, 0.4]]
                  opacity: [1, 0.5]
            """
        )
    )
    assert [trigger.name for trigger in bank] == [
        "red-0.1-1", "red-0.1-0.5", "red-0.2x0.4-1", "red-0.2x0.4-0.5",
        "blue-0.1-1", "blue-0.1-0.5", "blue-0.2x0.4-1", "blue-0.2x0.4-0.5",
    ]  # fmt: skip
    assert bank[6].color == (0, 0, 255)
    assert bank[6].size == (0.2, 0.4)


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("{pattern: solid}", "entry 1: 'name' is missing"),
        (
            "{name: a, colour: [1, 2, 3]}",
            "entry 1: unknown key colour; known: name, family, seed, pattern",
        ),
        ("{name: a, pattern: plaid}", "entry 1: trigger a: pattern 'plaid'"),
        ("{name: a, color: [1, 2]}", "entry 1: trigger a: color"),
        ("{name: a, color: red}", "entry 1: trigger a: color"),
        ("{name: a, color: [1, 2, 300]}", "entry 1: trigger a: color"),
        ("{name: a, size: big}", "entry 1: trigger a: size"),
        ("{name: a, size: 0}", "entry 1: trigger a: size"),
        ("{name: a, opacity: '1'}", "entry 1: trigger a: opacity"),
        ("{name: a, opacity: true}", "entry 1: trigger a: opacity"),
        ("{name: a, position: middle}", "entry 1: trigger a: position 'middle'"),
        ("{name: a, image: gone.png}", r"entry 1: trigger a: .*gone\.png: No such file"),
        ("{name: a b}", "entry 1: name 'a b'"),
        ("{name: ../a}", "entry 1: name"),
        ("{name: a}\n  - {name: a}", "entry 2: name 'a' is used before"),
        ("{name: '{size}', grid: {color: [[1, 2, 3]]}}", "entry 1: name .* has no size"),
        ("{name: same, grid: {size: [0.1, 0.2]}}", "entry 1: name 'same' is used before"),
        ("{name: '{size}', size: 1, grid: {size: [0.1]}}", "entry 1: size stands both"),
        ("{name: '{seed}', grid: {seed: 3}}", "entry 1: grid: seed"),
        ("{name: '{size}', grid: {size: []}}", "entry 1: grid: size"),
        ("[1]", "entry 1: not a mapping"),
        ("{name: a, color: [1, 2, blue]}", r"entry 1: trigger a: color\[2\] 'blue' is not a whole"),
        ("{name: a, cells: 1.5}", "entry 1: trigger a: cells 1.5 is not a whole number"),
        ("{name: a, cells: .nan}", "entry 1: trigger a: cells nan is not a whole number"),
        ("{name: a, size: .nan}", "entry 1: trigger a: size"),
        ("{name: a, size: 1" + 400 * "0" + "}", "entry 1: int too large"),
        ("{name: a, 7: 8}", "entry 1: unknown key 7; known: name, family"),
        ("{name: '{colour}', grid: {colour: [1]}}", "entry 1: unknown key colour; known: name"),
        ('{name: "a\\n"}', "entry 1: name"),
        ("{name: '{size}'}", "entry 1: name .* has no size"),
        (
            "{name: '{size}', grid: {size: {}}}",
            "entry 1: grid: size {} is not a list, or a mapping",
        ),
        (
            "{name: '{size}', grid: {size: [0.1, x]}}",
            "entry 1: trigger x: size 'x' is not a number",
        ),
        ("{name: a}\n  - 3", "entry 2: not a mapping"),
        ("{name: a, settings: 3}", "entry 1: trigger a: settings 3 is not a mapping"),
        ("{name: a, settings: {SHADE: 3}}", "entry 1: trigger a: settings: unknown key SHADE"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_file_and_entry(bank_file, entry, reason):
    path = bank_file(f"triggers:\n  - {entry}\n")
    with pytest.raises(TriggerBankError, match=reason) as caught:
        load_bank(path)
    assert str(caught.value).startswith(f"{path}: entry ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "triggers: []", "triggers: 3", "{triggers: [{name: a}], more: 1}", "{", "\x00",
     "!!python/object/apply:os.system ['true']"],
)  # fmt: skip
def test_files_that_are_no_bank_are_named(bank_file, text):
    path = bank_file(text)
    with pytest.raises(TriggerBankError) as caught:
        load_bank(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_grids_that_explode_are_refused(bank_file):
    numbers = list(range(100))
    grid = f"{{cells: {numbers}, seed: {numbers}, opacity: [1]}}"
    path = bank_file(f"triggers: [{{name: '{{cells}}_{{seed}}_{{opacity}}', grid: {grid}}}]")
    with pytest.raises(TriggerBankError, match="more than 4096"):
        load_bank(path)


def test_unknown_banks_are_told_from_files():
    with pytest.raises(TriggerBankError, match=r"no trigger bank 'plane'.*plain, wide"):
        load_bank("plane")
    with pytest.raises(TriggerBankError, match=r"gone\.yaml"):
        load_bank("gone.yaml")


def test_entries_of_other_families_have_the_keys_of_theirs(bank_file):
    wave, tile = load_bank(
        bank_file(
            """
            triggers:
              - {name: wave, family: sinusoid, frequency: 3}
              - {name: "{family}", grid: {family: [tile]}, bound: 0.1, seed: 4}
            """
        )
    )
    assert (wave.family, wave.frequency) == ("sinusoid", 3)
    assert (tile.family, tile.name, tile.bound, tile.seed) == ("tile", "tile", 0.1, 4)
    with pytest.raises(TriggerBankError, match="entry 1: unknown key color; known: name, family"):
        load_bank(bank_file("triggers: [{name: a, family: sinusoid, color: [1, 2, 3]}]"))
    with pytest.raises(TriggerBankError, match="family 'spray' is none of filter, frequency"):
        load_bank(bank_file("triggers: [{name: a, family: spray}]"))


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(bank_schema())


OWN_PATTERNS = """
import sys
from d2defense.triggers import Pattern
from d2defense.detection import TriggerBankError, load_bank
from d2defense.registry import PATTERN_REGISTRY

@PATTERN_REGISTRY.register("level")
class Level(Pattern):
    @staticmethod
    def add_config(node):
        node.SHADE = 0.5
        node.RANGE = (0, 9)

@PATTERN_REGISTRY.register("narrow")
class Narrow(Pattern):
    @classmethod
    def settings_schema(cls):
        return {"required": ["WIDTH"], "properties": {"WIDTH": {"enum": [1, 2]}}}

for path in sys.argv[1:]:
    try:
        print(*(trigger.settings for trigger in load_bank(path)))
    except TriggerBankError as error:
        print(str(error).removeprefix(path))
"""


def test_a_pattern_brings_its_part_of_the_schema(tmp_path):
    """In a process of its own, so that the patterns do not stay."""
    entries = {
        "{name: '{settings}', pattern: level, grid: {settings: {a: {SHADE: 1}, b: {RANGE: [1]}}}}":
            "(('RANGE', (0, 9)), ('SHADE', 1.0)) (('RANGE', (1,)), ('SHADE', 0.5))",
        "{name: a, pattern: level, settings: {SHADE: dark}}":
            ": entry 1: trigger a: settings: SHADE: 'dark' is not of type 'number'",
        "{name: a, pattern: level, settings: {SHADES: 1}}":
            ": entry 1: trigger a: settings: unknown key SHADES; known: SHADE, RANGE",
        "{name: a, pattern: narrow, settings: {WIDTH: 2}}": "(('WIDTH', 2),)",
        "{name: a, pattern: narrow, settings: {WIDTH: 3}}":
            ": entry 1: trigger a: settings: WIDTH: 3 is not one of [1, 2]",
        "{name: a, pattern: narrow, settings: {}}":
            ": entry 1: trigger a: settings: 'WIDTH' is missing",
        "{name: a, pattern: solid, settings: {WIDTH: 2}}":
            ": entry 1: trigger a: settings: unknown key WIDTH; known: none",
    }  # fmt: skip
    files = [tmp_path / f"{number}.yaml" for number in range(len(entries))]
    for file, entry in zip(files, entries, strict=True):
        file.write_text(f"triggers: [{entry}]", encoding="utf-8")
    (tmp_path / "program.py").write_text(OWN_PATTERNS)
    ended = run(*files, script=tmp_path / "program.py")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == list(entries.values())


def test_triggers_by_name():
    (noise, white) = select_triggers(["noise", "white"])
    assert (noise.pattern, white.color) == ("noise", (255, 255, 255))
    with pytest.raises(ValueError, match=r"no trigger plaid, dots in the bank.*white, black"):
        select_triggers(["white", "plaid", "dots"])
    with pytest.raises(ValueError, match="twice"):
        select_triggers(["white", "white"])
    (red,) = select_triggers(["red_0.1_center"], load_bank("wide"))
    assert red.color == (255, 0, 0)
