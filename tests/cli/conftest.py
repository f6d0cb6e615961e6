# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from d2defense.cli.program import main


class Outcome(NamedTuple):
    """What a command leaves on the terminal."""

    code: int
    out: str
    err: str


@pytest.fixture
def d2defense(capfd: pytest.CaptureFixture) -> Callable[..., Outcome]:
    """The ``d2defense`` program as a function of its arguments.

    A scan or repair that does not say how to search does not search, which would take minutes.
    """

    def run(*arguments: object) -> Outcome:
        capfd.readouterr()
        words = [str(argument) for argument in arguments]
        if words[:1] in (["scan"], ["repair"]) and not {"--search", "--help"} & set(words):
            words[1:1] = ["--search", "off"]
        code = main(words)
        return Outcome(code, *capfd.readouterr())

    return run


@pytest.fixture
def own_data(make_coco_dataset, sign_scenes) -> list[str]:
    """Options that name a small COCO-format dataset of signs."""
    source = make_coco_dataset(sign_scenes(8))
    return ["--dataset-json", source.json_file, "--image-root", source.image_root]


@pytest.fixture
def same_but_for_rounding() -> Callable[[object, object], None]:
    """A function that asserts that two results are equal, numbers up to rounding."""
    return _same_but_for_rounding


def _same_but_for_rounding(one: object, other: object) -> None:
    """Sums come out in another order where another number of threads adds them up."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            _same_but_for_rounding(value, other[key])
    elif isinstance(one, list):
        for value, counterpart in zip(one, other, strict=True):
            _same_but_for_rounding(value, counterpart)
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-4)
    else:
        assert one == other
