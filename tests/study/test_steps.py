# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest

from d2defense.study.runner import run_steps
from d2defense.study.steps import Step, StepResults, in_order, open_steps
from d2defense.study.workplace import Workplace


def chain(start: int = 1) -> tuple[Step, Step, Step]:
    first = Step("train/a", "train", {"seed": start})
    second = Step("repair/a", "repair", {"seed": 0}, {"model": first})
    return first, second, Step("evaluate/a", "evaluate", {}, {"model": second})


def names(steps: list[Step]) -> list[str]:
    return [step.name for step in steps]


class TestKeys:
    def test_a_key_changes_with_everything_that_the_result_depends_on(self) -> None:
        *_, last = chain()
        *_, other = chain(start=2)
        assert last.key == chain()[2].key
        assert last.key != other.key

    def test_two_different_steps_of_one_name_are_refused(self) -> None:
        with pytest.raises(ValueError, match="two different steps are called train/a"):
            in_order([chain()[0], chain(start=2)[0]])


class TestOpenSteps:
    def test_what_is_needed_comes_first_and_once(self, tmp_path: Path) -> None:
        _, second, third = chain()
        assert names(open_steps([third, second], StepResults(tmp_path))) == [
            "train/a",
            "repair/a",
            "evaluate/a",
        ]

    def test_a_step_that_is_done_does_not_ask_for_what_it_needed(self, tmp_path: Path) -> None:
        *_, last = chain()
        results = StepResults(tmp_path)
        results.put(last, {"AP": 1}, 0)
        assert open_steps([last], results) == []
        assert results.get(last) == {"AP": 1}

    def test_a_result_is_stale_once_what_it_rests_on_changes(self, tmp_path: Path) -> None:
        results = StepResults(tmp_path)
        results.put(chain()[2], {"AP": 1}, 0)
        changed = chain(start=2)
        assert results.get(changed[2]) is None
        assert names(open_steps([changed[2]], results)) == ["train/a", "repair/a", "evaluate/a"]

    def test_lost_files_are_made_again_only_for_steps_that_are_open(self, tmp_path: Path) -> None:
        first, _, third = chain()
        results = StepResults(tmp_path)
        results.put(first, {"files": ["models/a.pth"]}, 0)
        assert names(open_steps([third], results)) == ["train/a", "repair/a", "evaluate/a"]
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "a.pth").touch()
        assert names(open_steps([third], results)) == ["repair/a", "evaluate/a"]

    @pytest.mark.parametrize("content", ["", "{", "[]", '{"key": 1}', '{"result": {}}'])
    def test_a_damaged_result_counts_as_none(self, tmp_path: Path, content: str) -> None:
        first, *_ = chain()
        results = StepResults(tmp_path)
        results.put(first, {}, 0)
        (tmp_path / "steps" / "train" / "a.json").write_text(content)
        assert results.get(first) is None


class TestRunning:
    """The actions are real ones that need no training."""

    @pytest.fixture
    def split(self, signs_cache: Path) -> Step:
        arguments = {"dataset": {"name": "synth_signs_defender_64px"}, "images": 3}
        return Step("split/3", "split", arguments | {"output": "data/3"})

    def test_results_are_kept_and_what_fails_takes_its_dependents_along(
        self, tmp_path: Path, split: Step
    ) -> None:
        good = Step("use/good", "use", {"specimen": "clean_0"})
        bad = Step("use/bad", "use", {"specimen": "nothing"})
        lost = Step("scan/bad", "scan", {"dataset": {}, "settings": []}, {"model": bad})

        failed = run_steps([split, lost, good], Workplace(tmp_path))

        assert set(failed) == {"use/bad", "scan/bad"}
        assert "nothing" in failed["use/bad"]
        assert failed["scan/bad"] == "needs use/bad"
        results = StepResults(tmp_path)
        assert Path(results.get(good)["weights"]).is_file()
        parts = results.get(split)
        document = json.loads((tmp_path / parts["defender"]["json_file"]).read_text())
        assert len(document["images"]) == 3
        assert names(open_steps([split, lost, good], results)) == ["use/bad", "scan/bad"]
