# SPDX-License-Identifier: Apache-2.0
"""Methods to detect, on shipped detectors and few images, and how a run deals with them."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from d2defense.benchmark.methods.detect.base import DetectionMethod, Judgement, OutOfTime
from d2defense.benchmark.methods.detect.mm_bd import _p_value
from d2defense.benchmark.methods.detect.odscan import _polygon
from d2defense.benchmark.methods.detect.stamps import blend
from d2defense.benchmark.running import run_benchmark
from d2defense.benchmark.tasks.base import TaskOptions
from d2defense.benchmark.tasks.detect import Detecting, _measurements
from d2defense.benchmark.zoo.index import find_detectors
from d2defense.checkpoint import find_checkpoints
from d2defense.checkpoint.specimens import specimens_root
from d2defense.cli.program import main
from d2defense.data import DatasetSource
from d2defense.detection import ScanImages, ScanSettings
from d2defense.detection.search import levels
from d2defense.detection.search.race import RaceSettings
from d2defense.registry import DETECTION_REGISTRY
from d2defense.study.results import FAILED, ResultStore


@pytest.fixture
def options(tmp_path: Path, make_coco_dataset, sign_scenes) -> TaskOptions:
    source = make_coco_dataset(sign_scenes(20))
    images = ScanImages.load(source, ScanSettings(max_images=20))
    references = find_checkpoints([specimens_root() / "clean_1"], only_final=True)
    return TaskOptions(
        images, source, DatasetSource(source.name), tuple(references), None, 0, "cpu", tmp_path
    )


@pytest.fixture
def subject(options):
    def open_one(name: str):
        detector = next(each for each in find_detectors(specimens_root()) if each.name == name)
        (source,) = find_checkpoints([detector.folder], only_final=True)
        return Detecting().begin(detector, source, options)

    return open_one


def run(options, tmp_path, methods, only="clean_1", **changes):
    from dataclasses import replace

    store = ResultStore(tmp_path / "results")
    return store, run_benchmark(
        "detect", methods, [specimens_root()], store, replace(options, **changes), only
    )


class TestRun:
    def test_what_is_there_is_not_measured_again(self, options, tmp_path):
        store, first = run(options, tmp_path, ["distscan"])
        before = store.read()
        assert (first.measured, first.kept, first.failed) == (1, 0, ())
        _, again = run(options, tmp_path, ["distscan"])
        assert (again.measured, again.kept) == (0, 1)
        assert store.read() == before
        row = next(row for row in before if row.metric == "score")
        assert (row.truth, row.images, row.seed) == ("clean", 20, 0)
        assert len(row.sha256) == len(row.fingerprint) == 64

    def test_a_method_that_fails_is_a_row_and_the_rest_goes_on(self, options, tmp_path):
        # A budget that is spent before anything is said.
        store, summary = run(options, tmp_path, ["mm_bd", "mia"], budget=1e-9)
        assert len(summary.failed) == 1
        (failed,) = [row for row in store.read() if row.metric == FAILED]
        assert failed.method == "mm_bd"
        assert failed.reason.startswith("OutOfTime: 0 of 7 classes")
        assert any(row.method == "mia" and row.metric == "score" for row in store.read())

    def test_an_unknown_method_is_refused_before_anything_runs(self, options, tmp_path):
        with pytest.raises(ValueError, match="no detection method 'magic'; there are"):
            run(options, tmp_path, ["mia", "magic"])

    def test_a_method_of_one_s_own_needs_no_other_line(self, options, tmp_path):
        @DETECTION_REGISTRY.register("made_up_here")
        class MadeUp(DetectionMethod):
            """Says always the same."""

            def judge(self, subject):
                return Judgement(
                    4.0, (3.0, 5.0), False, "ghost", "stop", "uncertain", {"half": 2.0}
                )

        try:
            store, _ = run(options, tmp_path, ["made_up_here"], only="ghost_0")
        finally:
            del DETECTION_REGISTRY._obj_map["made_up_here"]
        values = {row.metric: row.value for row in store.read()}
        assert values == {
            **{"score": 4.0, "score:half": 2.0, "effect_named": 1.0, "target_named": 1.0},
            **{"alarm": 0.0, "called_clean": 0.0, "called_uncertain": 1.0},
        }
        assert all(row.kind is None for row in store.read())

    @pytest.mark.parametrize(
        ("effect", "said", "right"),
        [
            ("ghost", "ghost", 1.0),
            ("clean_label_ghost", "ghost", 1.0),
            ("persistent_disappearance", "disappearance", 1.0),
            ("ghost", "clean_label_ghost", 0.0),
            ("clean_label_ghost", "disappearance", 0.0),
            # Both are searched for, so they can be told apart.
            ("scene_misclassification", "misclassification", 0.0),
            ("of one's own", "ghost", 0.0),
        ],
    )
    def test_an_effect_is_named_by_what_it_does_not_by_its_training(self, effect, said, right):
        facts = {"truth": "backdoored", "effect": effect, "target_class": None}
        found = _measurements(Judgement(1.0, effect=said), facts)
        assert {each.metric: each.value for each in found}["effect_named"] == right

    def test_each_number_of_images_has_rows_of_its_own(
        self, tmp_path, make_coco_dataset, sign_scenes, capsys
    ):
        defender = make_coco_dataset(sign_scenes(12)).ensure()
        arguments = ["benchmark", "run", "--methods", "distscan", "--only", "clean_1"]
        arguments += ["--defender", defender, "--results", str(tmp_path), "--num-images", "5", "9"]
        assert main(arguments) == 0
        assert "2 measured" in capsys.readouterr().out
        scores = [row for row in ResultStore(tmp_path).read() if row.metric == "score"]
        assert [row.images for row in scores] == [5, 9]
        assert scores[0].fingerprint != scores[1].fingerprint
        assert main([*arguments, "12"]) == 0
        assert "1 measured, 2 were there" in capsys.readouterr().out

    def test_shared_work_is_charged_to_each(self, subject):
        one = subject("clean_1")
        one.survey()
        assert one.charged == 0
        one.survey()
        assert one.charged > 0


class TestParts:
    def test_a_row_repeats_inherited_settings(self):
        assert DETECTION_REGISTRY.get("search_twin")().settings == {"level": "standard"}
        assert DETECTION_REGISTRY.get("search_fast")().settings == {"level": "fast"}

    def test_an_outlying_margin_is_unlikely(self):
        others = np.array([1.0, 1.2, 0.9, 1.1, 1.05, 0.95, 1.0])
        assert _p_value(1.1, others) > 0.3
        assert _p_value(5.0, others) < 1e-3
        assert _p_value(5.0, others - 3) < 1e-3

    def test_a_polygon_s_lines_cut_the_square(self):
        whole = _polygon(torch.zeros(8), 32)
        # The left line from 0.4 at the top to 0 at the bottom.
        cut = _polygon(torch.tensor([0.4, 0.0, 0, 0, 0, 0, 0, 0]), 32)
        assert whole[0, 16, 16] > 0.99
        assert cut[0, 4, 4] < 0.2 * whole[0, 4, 4]
        assert cut[0, 28, 28] == pytest.approx(float(whole[0, 28, 28]), abs=0.05)

    def test_a_blend_changes_its_place_alone_with_gradient(self):
        image = torch.zeros(3, 20, 20)
        mask = torch.full((1, 4, 4), 0.5, requires_grad=True)
        pattern = torch.full((3, 4, 4), 100.0, requires_grad=True)
        # One place reaches over the rim, one lies outside.
        places = torch.tensor([[4.0, 5, 10, 9], [18.0, 18, 24, 24], [40.0, 40, 44, 44]])
        (stamped,) = blend([image], [places], mask, pattern)
        changed = (stamped["image"].detach() == 50).all(0)
        assert changed[5:9, 4:10].all()
        assert changed[18:, 18:].all()
        assert int(changed.sum()) == 24 + 4
        assert not image.any()
        stamped["image"].sum().backward()
        assert mask.grad.abs().sum() > 0
        assert pattern.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["bank", "mia", "mia_two_sided", "objects_found", "distscan"])
def test_quick_methods_say_something_of_a_detector(subject, name):
    said = DETECTION_REGISTRY.get(name)().judge(subject("clean_1"))
    assert np.isfinite(said.score)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mm_bd", "neural_cleanse", "odscan"])
def test_slow_methods_judge_within_their_budget(subject, name):
    method = DETECTION_REGISTRY.get(name)()
    method.steps, method.starts, method.warm_up, method.selection = 4, 4, 2, 2
    method.samples, method.pairs, method.images = 2, 1, 2
    one = subject("clean_1")
    said = method.judge(one)
    assert np.isfinite(said.score)
    assert said.is_alarm in (True, False)
    # Nothing of the detector is changed.
    assert all(not parameter.requires_grad for parameter in one.model.parameters())
    one.deadline = time.perf_counter() - 1
    with pytest.raises(OutOfTime):
        method.judge(one)


@pytest.mark.slow
def test_a_search_without_time_is_given_up(subject):
    one = subject("clean_2")
    one.deadline = time.perf_counter() - 1
    with pytest.raises(RuntimeError, match="time limit"):
        DETECTION_REGISTRY.get("search_fast")().judge(one)
    # A scan is uncertain then, as the product is.
    scan = DETECTION_REGISTRY.get("scan")()
    scan.level = "fast"
    said = scan.judge(one)
    assert said.verdict == "uncertain"
    assert set(said.parts) == {"bank"}


@pytest.mark.slow
def test_the_bank_and_the_fall_of_objects_tell_a_white_patch(subject):
    for name in ("bank", "objects_found"):
        method = DETECTION_REGISTRY.get(name)()
        assert method.judge(subject("backdoored_1")).score > method.judge(subject("clean_2")).score


@pytest.mark.slow
def test_a_scan_is_bank_and_search_and_takes_their_work(subject, monkeypatch):
    short = RaceSettings(
        scout_steps=1, targets=1, heat_steps=1, finalists=1, steps=2, families=("patch",)
    )
    monkeypatch.setattr(levels, "LEVELS", {**levels.LEVELS, "fast": short})
    one, asked = subject("backdoored_1"), []

    def twin(model, images, settings, on_step):
        asked.append(model)
        return one.references["clean_1"]

    monkeypatch.setattr("d2defense.benchmark.methods.detect.search.fine_tuned_twin", twin)
    bank = DETECTION_REGISTRY.get("bank")().judge(one)
    searched = DETECTION_REGISTRY.get("search_fast")().judge(one)
    assert one.charged == 0
    scan = DETECTION_REGISTRY.get("scan")()
    scan.level = "fast"
    said = scan.judge(one)
    assert one.charged > 0
    # Each in thresholds of its own, so that the larger one is the score.
    assert said.score == max(said.parts["bank"], said.parts["search"])
    assert said.parts["bank"] == pytest.approx(bank.score / one.inspect().verdict.threshold)
    assert (said.parts["search"] > 0) == (searched.score > 0)
    assert said.verdict == "backdoored"
    assert said.is_alarm
    # What is found on images of one's own takes proof, as in a scan.
    assert asked == [one.model]
    # The parts of each are what it takes the largest of.
    assert bank.score == max(bank.parts.values())
    assert searched.score == max(searched.parts.values())
