# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from d2defense.config import config_root, get_d2defense_cfg, merge_config_file, merge_overrides
from d2defense.registry import EXPERIMENT_REGISTRY
from d2defense.study.experiments.base import experiments_in_order
from d2defense.study.plan import PAPER_ATTACK, Detector, Plan
from d2defense.study.profiles import load_profile, with_photos
from d2defense.study.repairs import OURS, RENEWAL, VANILLA
from d2defense.study.report import write_report
from d2defense.study.steps import Step, in_order
from d2defense.workflows.fine_tuning import DEFAULT_METHOD

TINY = load_profile("tiny")
PROFILES = sorted(path.stem for path in (config_root() / "study").iterdir())


def all_steps(plan: Plan) -> list[Step]:
    return in_order(
        step
        for name in experiments_in_order()
        for step in EXPERIMENT_REGISTRY.get(name)().steps(plan)
    )


@pytest.mark.parametrize("name", PROFILES)
class TestEveryProfile:
    def test_every_step_is_one_of_its_name_and_can_be_written_down(self, name: str) -> None:
        steps = all_steps(Plan(load_profile(name)))
        assert steps
        assert json.loads(json.dumps([step.arguments for step in steps]))

    def test_every_config_and_override_exists(self, name: str) -> None:
        steps = all_steps(Plan(load_profile(name)))
        for step in steps:
            cfg = get_d2defense_cfg()
            if step.action == "train":
                merge_config_file(cfg, config_root() / step.arguments["config"])
                merge_overrides(cfg, [str(value) for value in step.arguments["overrides"]])
                clean = ("_clean_", "_control_")
                assert bool(cfg.ATTACK.EFFECT) == all(word not in step.name for word in clean)
            elif step.action == "repair":
                merge_overrides(cfg, [str(value) for value in step.arguments["overrides"]])

    def test_a_report_of_nothing_says_what_is_missing(self, name: str, tmp_path: Path) -> None:
        plan = Plan(load_profile(name))
        path, bars = write_report(tmp_path, plan, experiments_in_order(), {}, "command")
        assert f"{len(all_steps(plan))} steps have no result" in path.read_text()
        assert all(bar.met is None for bar in bars)

    def test_what_is_asked_for_goes_over_every_schedule(self, name: str) -> None:
        profile = replace(
            load_profile(name),
            training_opts=("SOLVER.MAX_ITER", "7"),
            repair_opts=("REMOVAL.SOLVER.MAX_ITER", "5"),
        )
        steps = all_steps(Plan(profile))
        ends = set()
        for step in steps:
            if step.action in ("train", "repair"):
                cfg = get_d2defense_cfg()
                merge_overrides(cfg, [str(value) for value in step.arguments["overrides"]])
                solver = cfg.SOLVER if step.action == "train" else cfg.REMOVAL.SOLVER
                # The study of steps has them for its subject.
                if not step.name.endswith("_steps"):
                    ends.add((step.action, solver.MAX_ITER))
        assert ends <= {("train", 7), ("repair", 5)}
        assert ("repair", 5) in ends

    def test_figure_4_measures_before_the_end(self, name: str) -> None:
        steps = EXPERIMENT_REGISTRY.get("figure4")().steps(Plan(load_profile(name)))
        early = [step for step in steps if "@" in step.name]
        assert early
        for step in early:
            at = int(step.name.rpartition("@")[2])
            repair = step.needs["model"]
            cfg = get_d2defense_cfg()
            merge_overrides(cfg, [str(value) for value in repair.arguments["overrides"]])
            assert at < cfg.REMOVAL.SOLVER.MAX_ITER
            assert at % repair.arguments["keep_every"] == 0


class TestTiny:
    def test_has_three_seeds_of_four_detectors_clean_and_attacked(self) -> None:
        steps = EXPERIMENT_REGISTRY.get("table1")().steps(Plan(TINY))
        scans = {step.name: step for step in steps if step.action == "scan"}
        detectors = Counter(re.sub(r"\d$", "", name) for name in scans)
        assert len(detectors) == 8
        assert set(detectors.values()) == {3}
        models = [step.needs["model"].key for step in scans.values()]
        assert len(set(models)) == len(models)

    def test_the_detectors_of_the_comparison_are_those_of_table_1(self) -> None:
        made = [
            {
                step.key
                for step in in_order(EXPERIMENT_REGISTRY.get(name)().steps(Plan(TINY)))
                if step.action in ("train", "use")
            }
            for name in ("table1", "table2")
        ]
        assert made[0] == made[1]

    def test_a_warm_start_is_the_specimen_of_the_same_nature(self) -> None:
        """A backdoor of a few hundred steps only would go with any fine-tuning."""
        plan = Plan(TINY)
        pairs = [pair for pair in plan.pairs() if pair[0].kind.warm]
        assert pairs
        for clean, backdoored in pairs:
            starts = [plan.detector(d).needs["start"].name for d in (clean, backdoored)]
            assert starts == [f"use/clean_{clean.seed}", f"use/backdoored_{clean.seed}"]

    def test_population_is_large_enough(self) -> None:
        steps = EXPERIMENT_REGISTRY.get("population")().steps(Plan(TINY))
        names = [step.name for step in steps if step.action == "scan"]
        clean = [name for name in names if "_clean_" in name or "_control_" in name]
        assert len(clean) >= 16
        assert len(names) - len(clean) >= 16

    def test_renewal_and_vanilla_differ_in_the_reset_alone(self) -> None:
        plan = Plan(TINY)
        detector = Detector(TINY.detectors[0], 0, PAPER_ATTACK)
        renewal, vanilla = (plan.repair(detector, repair) for repair in (RENEWAL, VANILLA))
        differing = {
            key for key, value in renewal.arguments.items() if value != vanilla.arguments[key]
        }
        assert differing == {"output", "method"}
        assert renewal.needs["evidence"].name == f"scan/{detector.name}"
        assert "evidence" not in vanilla.needs

    def test_ours_is_the_default_of_a_repair(self) -> None:
        detector = Detector(TINY.detectors[0], 0, PAPER_ATTACK)
        ours = Plan(TINY).repair(detector, OURS).arguments
        assert ours["method"] == DEFAULT_METHOD
        cfg, default = get_d2defense_cfg(), get_d2defense_cfg()
        merge_overrides(cfg, [str(value) for value in ours["overrides"]])
        assert cfg.REMOVAL == default.REMOVAL


def test_photos_are_trained_repaired_and_measured_on_parts_of_their_own(tmp_path: Path) -> None:
    plan = Plan(with_photos(TINY, str(tmp_path)))
    steps = {step.name: step for step in in_order(EXPERIMENT_REGISTRY.get("photos")().steps(plan))}
    part = {
        "train": steps["train/photos_oda_0"].arguments["data"][1],
        "val": steps["repair/photos_oda_0/ours"].arguments["dataset"]["json_file"],
        "test": steps["evaluate/photos_oda_0/ours"].arguments["dataset"]["json_file"],
    }
    assert {name: Path(path).stem for name, path in part.items()} == {n: n for n in part}


def test_the_population_of_photos_starts_from_the_one_clean_detector() -> None:
    plan = Plan(with_photos(TINY, "photos"))
    steps = in_order(EXPERIMENT_REGISTRY.get("photos_population")().steps(plan))
    trained = [step for step in steps if step.action == "train"]
    scratch = [step.name for step in trained if not step.needs]
    assert scratch == ["train/photos_clean_0", "train/photos_oda_0"]
    fine_tuned = [step for step in trained if step.needs]
    assert {step.needs["start"].name for step in fine_tuned} == {"train/photos_clean_0"}
    configs = set()
    for step in fine_tuned:
        cfg = get_d2defense_cfg()
        merge_config_file(cfg, config_root() / step.arguments["config"])
        merge_overrides(cfg, [str(value) for value in step.arguments["overrides"]])
        assert bool(cfg.ATTACK.EFFECT) == ("_control_" not in step.name)
        assert cfg.SOLVER.MAX_ITER == 600
        configs.add(cfg.dump())
    assert len(configs) == len(fine_tuned)
