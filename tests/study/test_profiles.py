# SPDX-License-Identifier: Apache-2.0
"""Profiles of the study: what files say becomes, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from d2defense.config import config_root
from d2defense.registry import EXPERIMENT_REGISTRY
from d2defense.study.experiments.base import experiments_in_order
from d2defense.study.plan import Plan
from d2defense.study.profiles import (
    DetectorKind,
    Photos,
    ProfileError,
    StudyProfile,
    load_profile,
    profile_schema,
    with_defender_images,
)
from d2defense.study.report import write_report
from d2defense.study.steps import Step, in_order

FPN = {"title": "Faster R-CNN FPN", "config": "SynthSigns/faster_rcnn_tiny_fpn"}
# What a profile must say that builds on none.
WHOLE = {
    "detectors": {"fpn": FPN},
    "seeds": [0],
    "defender": {"name": "synth_signs_defender"},
    "test": {"name": "synth_signs_val"},
    "defender_images": 200,
    "pool": "synth_signs_pool",
    "sizes": [25],
    "steps": [90],
}


def steps_of(profile: StudyProfile) -> dict[str, Step]:
    """All steps of the experiments that a profile has, by name."""
    names = profile.experiments or experiments_in_order()
    steps = (
        step for name in names for step in EXPERIMENT_REGISTRY.get(name)().steps(Plan(profile))
    )
    return {step.name: step for step in in_order(steps)}


def pairs_of(step: Step) -> dict[str, Any]:
    """What a training or a repair overrides, the last word on each key."""
    pairs = step.arguments["overrides"]
    return dict(zip(pairs[::2], pairs[1::2], strict=True))


@pytest.fixture
def write(tmp_path: Path):
    """Writes a profile that builds on tiny unless told otherwise."""

    def write(name: str = "mine.yaml", base: str | None = "tiny", **keys: Any) -> Path:
        content = {"name": "mine", **({"base": base} if base else {}), **keys}
        path = tmp_path / name
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


class TestShipped:
    @pytest.mark.parametrize(
        ("name", "steps"), [("tiny", 344), ("quick", 22), ("small", 338), ("paper", 439)]
    )
    def test_has_its_name_and_so_many_steps(self, name: str, steps: int) -> None:
        profile = load_profile(name)
        assert profile.name == name
        assert len(steps_of(profile)) == steps

    @pytest.mark.parametrize(
        ("name", "step", "key"),
        [
            ("tiny", "evaluate/double_head_rcnn_fpn_oda_2/renewal", "c262425c6beddf49"),
            ("quick", "evaluate/faster_rcnn_fpn_oda_0/renewal", "5c200b1922157365"),
            ("small", "evaluate/double_head_rcnn_fpn_oda_2/renewal", "f1e730ac212ab8c0"),
            ("paper", "evaluate/double_head_rcnn_fpn_oda_2/renewal", "11a6d94dd6df6072"),
        ],
    )
    def test_results_of_before_are_not_stale(self, name: str, step: str, key: str) -> None:
        """The key follows from a training, a scan, a repair and two datasets."""
        assert steps_of(load_profile(name))[step].key == key

    def test_quick_trains_nothing_from_scratch(self) -> None:
        trained = [s for s in steps_of(load_profile("quick")).values() if s.action == "train"]
        assert all("start" in step.needs for step in trained)

    def test_small_reads_no_weights_and_no_coco(self) -> None:
        steps = steps_of(load_profile("small"))
        trained = [step for step in steps.values() if step.action == "train"]
        assert trained
        for step in trained:
            pairs = pairs_of(step)
            assert pairs["MODEL.WEIGHTS"] == ""
            assert pairs["DATASETS.TRAIN"] == ("synth_signs_train_512px",)
        assert not any("coco_2017" in str(step.arguments) for step in steps.values())

    def test_paper_keeps_the_zoo_s_schedule_but_for_fine_tuning(self) -> None:
        steps = steps_of(load_profile("paper"))
        scratch = steps["train/faster_rcnn_c4_oda_4"]
        assert set(pairs_of(scratch)) == {"SEED", "ATTACK.SEED", "DATASETS.TEST"}
        assert scratch.arguments["config"] == "COCO-Detection/faster_rcnn_R_50_C4_1x_oda.yaml"
        (rare,) = (
            step for name, step in steps.items() if name.startswith("train/") and "rate_3" in name
        )
        assert pairs_of(rare)["SOLVER.MAX_ITER"] == 13500
        assert pairs_of(rare)["SOLVER.STEPS"] == (6000, 8000)

    def test_paper_measures_on_what_the_defender_does_not_have(self) -> None:
        steps = steps_of(load_profile("paper"))
        repair = steps["repair/mask_rcnn_fpn_oda_3/ours"]
        measured = steps["evaluate/mask_rcnn_fpn_oda_3/ours"]
        assert repair.needs["parts"].key == measured.needs["parts"].key
        assert repair.needs["parts"].arguments["images"] == 1000
        assert repair.arguments["dataset"] == {"part": "defender"}
        assert measured.arguments["dataset"] == {"part": "rest"}


class TestOwn:
    def test_its_keys_take_the_place_of_the_base_s(self, write) -> None:
        profile, tiny = load_profile(write(seeds=[7], detectors={"fpn": FPN})), load_profile("tiny")
        assert (profile.name, profile.seeds) == ("mine", (7,))
        assert [kind.name for kind in profile.detectors] == ["fpn"]
        assert profile.detectors[0].groups == ()
        assert (profile.variants, profile.comparison) == (tiny.variants, tiny.comparison)

    def test_its_attacks_are_added_to_the_base_s(self, write) -> None:
        green = {"title": "green", "trigger": {"ATTACK.TRIGGER.PATCH.COLOR": [0, 255, 0]}}
        variants = {"green": {"SOLVER.MAX_ITER": 5}, "black": {}}
        profile = load_profile(write(attacks={"green": green}, variants=variants))
        assert [attack.name for attack in profile.variants] == ["green", "black"]
        step = steps_of(profile)["train/faster_rcnn_fpn_green_0"]
        assert pairs_of(step)["ATTACK.TRIGGER.PATCH.COLOR"] == (0, 255, 0)
        assert pairs_of(step)["SOLVER.MAX_ITER"] == 5
        assert profile.unseen == load_profile("tiny").unseen

    def test_an_attack_may_take_the_place_of_one_of_the_base_s(self, write) -> None:
        profile = load_profile(write(attacks={"black": {"title": "none"}}))
        (black,) = (attack for attack in profile.variants if attack.name == "black")
        assert (black.title, black.trigger) == ("none", ())

    def test_it_may_build_on_a_file_beside_it(self, write, monkeypatch) -> None:
        write("first.yaml", seeds=[3], steps=[11])
        path = write("second.yaml", base="first.yaml", steps=[12])
        profile = load_profile(path)
        assert (profile.seeds, profile.steps, profile.pool) == ((3,), (12,), "synth_signs_pool")
        monkeypatch.chdir(path.parent)
        assert load_profile("second.yaml") == profile

    def test_it_may_build_on_nothing(self, write, tmp_path) -> None:
        profile = load_profile(write(base=None, **WHOLE))
        steps = steps_of(profile)
        assert {"train/fpn_clean_0", "evaluate/fpn_oda_0/ours"} <= set(steps)
        assert not any("photos" in name for name in steps)
        path, _ = write_report(tmp_path, Plan(profile), experiments_in_order(), {}, "command")
        assert f"{len(steps)} steps have no result" in path.read_text()

    def test_its_configs_may_lie_beside_it(self, write, tmp_path) -> None:
        for end in (".yaml", "_oda.yaml"):
            shipped = config_root() / "SynthSigns" / f"faster_rcnn_tiny_fpn{end}"
            (tmp_path / f"own{end}").write_text(f"_BASE_: {shipped}\n")
        write("first.yaml", detectors={"fpn": {"title": "own", "config": "own"}})
        (tmp_path / "below").mkdir()
        profile = load_profile(write("below/mine.yaml", base="../first.yaml"))
        step = steps_of(profile)["train/fpn_oda_0"]
        assert step.arguments["config"] == str(tmp_path / "own_oda.yaml")

    def test_other_images_set_aside_leave_a_test_set_of_its_own(self, write) -> None:
        test = {"name": "coco_2017_train"}
        profile = with_defender_images(load_profile(write(base="paper", test=test)), 300)
        assert profile.defender == {"name": "coco_2017_val", "aside": 300, "part": "defender"}
        assert (profile.test, profile.defender_images) == (test, 300)


class TestRefused:
    @pytest.mark.parametrize(
        ("keys", "complaint"),
        [
            ({"sead": [1]}, "the file: Additional properties are not allowed ('sead'"),
            ({"detectors": {"fpn": FPN | {"cold": True}}}, "detectors/fpn: Additional properties"),
            (
                {"photos": {"config": FPN["config"], "attack": {}, "seeds": [0], "folder": "a"}},
                "photos: Additional properties are not allowed ('folder'",
            ),
            ({"seeds": []}, "seeds: [] "),
            ({"training": {"MODEL.WEIGHTS": None}}, "training/MODEL.WEIGHTS: None is not of type"),
            ({"training": {"SOLVER": {"MAX_ITER": 3}}}, "training/SOLVER: {'MAX_ITER': 3} is not"),
            (
                {"defender": {"name": "coco_2017_val", "aside": 5}},
                "defender: 'part' is a dependency",
            ),
            ({"attacks": {"clean": {"title": "a"}}}, "attacks: 'clean' "),
            ({"detectors": {"photos": FPN}}, "detectors: 'photos' "),
            ({"base": "huge"}, "base: 'huge': neither a file nor one of paper, quick, small, tiny"),
            ({"base": "mine.yaml"}, "base: 'mine.yaml' builds on this file"),
            ({"variants": {"blue": {}}}, "variants: no attack blue; there are rate_3, "),
            (
                {"training": {"SOLVER.MAX_ITERS": 5}},
                "training: cannot override the configuration: Non-existent key: SOLVER.MAX_ITERS",
            ),
            (
                {"repair": {"REMOVAL.SOLVER.MAX_ITER": "many"}},
                "repair: cannot override the configuration: Type mismatch",
            ),
            (
                {"variants": {"black": {"ATTACK.RATE": 0.5}}},
                "variants/black: cannot override the configuration: Non-existent key: ATTACK.RATE",
            ),
            (
                {"attacks": {"black": {"title": "a", "trigger": {"ATTACK.TRIGGER.COLOR": [1]}}}},
                "attacks/black/trigger: cannot override the configuration: ",
            ),
            (
                {"detectors": {"fpn": FPN | {"repair": {"REMOVAL.NO_SUCH": 1}}}},
                "detectors/fpn/repair: cannot override the configuration: ",
            ),
            (
                {"detectors": {"fpn": FPN | {"config": "nowhere"}}},
                "no config nowhere.yaml and nowhere_oda.yaml",
            ),
            ({"experiments": ["table9"]}, "no experiment 'table9'; there are "),
            (
                {"defender": {"name": "coco_2017_val", "aside": 5, "part": "defender"}},
                "defender_images: 200, but 5 are set aside",
            ),
        ],
    )
    def test_what_does_not_fit_in_one_line_by_file_and_place(self, write, keys, complaint) -> None:
        path = write(**keys)
        with pytest.raises(ProfileError) as refusal:
            load_profile(path)
        assert str(refusal.value).startswith(f"{path}: {complaint}")
        assert "\n" not in str(refusal.value)

    @pytest.mark.parametrize("missing", WHOLE)
    def test_what_leaves_something_out_and_builds_on_nothing(self, write, missing) -> None:
        path = write(base=None, **{key: value for key, value in WHOLE.items() if key != missing})
        with pytest.raises(ProfileError, match=f"'{missing}' is a required property"):
            load_profile(path)

    def test_files_that_build_on_each_other(self, write) -> None:
        first, second = write("a.yaml", base="b.yaml"), write("b.yaml", base="a.yaml")
        for path in (first, second):
            with pytest.raises(ProfileError, match="builds on this file"):
                load_profile(path)

    def test_a_mistake_in_the_base_is_its_own(self, write) -> None:
        first, second = write("first.yaml", sead=[1]), write("second.yaml", base="first.yaml")
        with pytest.raises(ProfileError) as refusal:
            load_profile(second)
        assert str(refusal.value).startswith(f"{first}: ")

    def test_an_unknown_name(self) -> None:
        with pytest.raises(ProfileError, match=r"'huge': neither a file nor one of paper, quick"):
            load_profile("huge")

    def test_code(self, tmp_path) -> None:
        path = tmp_path / "evil.yaml"
        path.write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']")
        with pytest.raises(ProfileError, match="cannot be read"):
            load_profile(path)
        assert not (tmp_path / "made").exists()


def described(node: dict[str, Any], place: str = "") -> Iterator[tuple[str, bool]]:
    """Every key of a schema by its place, and whether something says what it is."""
    definitions = profile_schema()["$defs"]
    for key, value in node.get("properties", {}).items():
        target = value.get("$ref", "").removeprefix("#/$defs/")
        inner = {**definitions[target], **value} if target else value
        yield f"{place}{key}", "description" in inner
        yield from described(inner, f"{place}{key}/")
        if isinstance(inner.get("additionalProperties"), dict):
            yield from described(inner["additionalProperties"], f"{place}{key}/")


class TestSchema:
    def test_is_one(self) -> None:
        jsonschema.Draft202012Validator.check_schema(profile_schema())

    def test_says_what_every_key_is(self) -> None:
        keys = dict(described(profile_schema()))
        assert {"seeds", "defender/aside", "detectors/warm", "photos/variants"} <= set(keys)
        assert [key for key, is_described in keys.items() if not is_described] == []

    @pytest.mark.parametrize(
        ("kind", "place", "from_elsewhere", "further"),
        [
            (StudyProfile, "", {"training_opts", "repair_opts"}, {"base", "attacks"}),
            (DetectorKind, "detectors/", {"name"}, set()),
            (Photos, "photos/", {"folder"}, set()),
        ],
    )
    def test_has_the_keys_that_the_study_reads(self, kind, place, from_elsewhere, further) -> None:
        keys = [key for key, _ in described(profile_schema()) if key.startswith(place)]
        own = {key.removeprefix(place).partition("/")[0] for key in keys}
        assert own == {field.name for field in fields(kind)} - from_elsewhere | further
