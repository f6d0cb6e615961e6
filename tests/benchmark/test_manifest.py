# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import jsonschema
import pytest
import yaml

from d2defense.benchmark.zoo.compose import digest, training_config
from d2defense.benchmark.zoo.entries import expand, matching
from d2defense.benchmark.zoo.manifest import ManifestError, load_manifest, manifest_schema
from d2defense.config import config_root

MANIFEST = {
    "name": "made_up",
    "data": {
        "train": "synth_signs_train",
        "test": "synth_signs_val",
        "defender": "synth_signs_defender",
    },
    "control": ["specimen://clean_1"],
    "detectors": {
        "fpn": {"config": "SynthSigns/faster_rcnn_tiny_fpn.yaml"},
        "c4": {"config": "SynthSigns/faster_rcnn_tiny_c4.yaml"},
    },
    "schedules": {
        "scratch": {},
        "fine_tune": {"start": "clean", "overrides": {"SOLVER.MAX_ITER": 900}},
    },
    "attacks": {
        "white": {
            "config": "SynthSigns/attacks/disappearance_white.yaml",
            "vary": {"ATTACK.POISONING_RATE": [0.05, 0.1, 0.2]},
        },
        "ghost": {"config": "SynthSigns/attacks/ghost_patch.yaml"},
    },
    "groups": [
        {"truth": "clean", "seeds": [0, 1, 2]},
        {"truth": "backdoored", "attacks": "all", "seeds": [0, 1, 2]},
        {"truth": "spurious", "attacks": ["ghost"], "schedules": ["scratch"], "seeds": [0]},
    ],
}


@pytest.fixture
def write(tmp_path: Path):
    def write(change=lambda content: None) -> Path:
        content = copy.deepcopy(MANIFEST)
        change(content)
        path = tmp_path / "manifest.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(manifest_schema())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda m: m.pop("control"), "'control' is a required property"),
        (lambda m: m["groups"][0].update(truth="dirty"), "groups/0/truth"),
        (lambda m: m["groups"][0].update(attacks=["white"]), "groups/0"),
        (lambda m: m["groups"][1].pop("attacks"), "groups/1"),
        (
            lambda m: m["groups"][1].update(attacks=["blue"]),
            "there are ghost, white",
        ),
        (lambda m: m["groups"][1].update(seeds=[-1]), "groups/1/seeds/0"),
    ],
)
def test_a_wrong_manifest_is_refused_by_file_and_place(write, change, complaint):
    path = write(change)
    with pytest.raises(ManifestError) as refusal:
        load_manifest(path)
    assert str(path) in str(refusal.value)
    assert complaint in str(refusal.value)


def test_a_manifest_never_runs_code(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/made']")
    with pytest.raises(ManifestError, match="cannot be read"):
        load_manifest(path)
    assert not (tmp_path / "made").exists()


def test_groups_are_products(write):
    entries = expand(load_manifest(write()))
    # Clean detectors are trained from scratch alone.
    assert Counter(entry.truth for entry in entries) == {
        "clean": 6,
        "backdoored": 24,
        "spurious": 2,
    }
    assert Counter(entry.schedule for entry in entries if entry.truth == "clean") == {"scratch": 6}
    assert len({entry.name for entry in entries}) == 32
    assert len({entry.training_seed for entry in entries}) == 32


def test_every_beginning_is_balanced(write):
    entries = expand(load_manifest(write()))
    for length in (8, 16, 24):
        beginning = entries[:length]
        for key in ("truth", "detector", "schedule"):
            of_all = Counter(getattr(entry, key) for entry in entries)
            so_far = Counter(getattr(entry, key) for entry in beginning)
            for value, count in of_all.items():
                assert abs(so_far[value] - count * length / len(entries)) <= 2


def test_a_third_is_sequestered_of_every_truth(write):
    entries = expand(load_manifest(write()))
    aside = [entry for entry in entries if entry.is_sequestered]
    assert len(aside) == len(entries) // 3
    assert {entry.truth for entry in aside} >= {"clean", "backdoored"}


def test_what_is_drawn_stays_when_others_are_added(write):
    def more(content):
        content["groups"].insert(0, {"truth": "clean", "seeds": [7, 8]})

    before = {entry.name: entry.drawn for entry in expand(load_manifest(write()))}
    after = {entry.name: entry.drawn for entry in expand(load_manifest(write(more)))}
    assert before.items() <= after.items()
    assert len({str(drawn) for drawn in before.values()}) == 4


def test_fine_tuned_ones_begin_with_a_clean_one_of_their_kind(write):
    for entry in expand(load_manifest(write())):
        if entry.schedule == "fine_tune":
            assert entry.start.truth == "clean"
            assert entry.start.detector == entry.detector
        else:
            assert entry.start is None


def test_a_detector_that_has_nothing_to_begin_with_is_refused(write):
    path = write(lambda content: content["groups"].pop(0))
    with pytest.raises(ManifestError, match="begins with a clean detector of its kind"):
        expand(load_manifest(path))


def test_a_training_is_the_detector_s_with_the_attack_s(write):
    manifest = load_manifest(write())
    by_name = {entry.name: entry for entry in expand(manifest)}
    cfg = training_config(manifest, by_name["ghost-c4-fine_tune-1"])
    # Of the attack's config, which is one of another detector, only ATTACK.
    assert cfg.MODEL.BACKBONE.NAME == "build_tiny_resnet_backbone"
    assert (cfg.ATTACK.EFFECT, cfg.ATTACK.TARGET_CLASS) == ("ghost", "stop")
    assert cfg.SOLVER.MAX_ITER == 900
    assert cfg.SEED == cfg.ATTACK.SEED == by_name["ghost-c4-fine_tune-1"].training_seed
    spurious = training_config(manifest, by_name["spurious_ghost-fpn-scratch-0"])
    assert (spurious.ATTACK.POISONING_RATE, spurious.ATTACK.SPURIOUS_RATE) == (0.0, 0.1)


def test_an_override_that_does_not_fit_names_the_detector(write):
    path = write(lambda content: content["groups"][0].update(overrides={"SOLVER.NO_SUCH": 1}))
    manifest = load_manifest(path)
    with pytest.raises(ManifestError, match=r"clean-(fpn|c4)-scratch-\d: Non-existent key"):
        training_config(manifest, next(e for e in expand(manifest) if e.truth == "clean"))


def test_a_digest_changes_with_what_a_training_follows_from(write):
    def slower(content):
        content["schedules"]["scratch"] = {"overrides": {"SOLVER.MAX_ITER": 7}}

    name = "white-fpn-scratch-0"

    def digests(manifest):
        return {entry.name: digest(manifest, entry) for entry in expand(manifest)}

    before, after = digests(load_manifest(write())), digests(load_manifest(write(slower)))
    assert before[name] != after[name]
    assert before["white-fpn-fine_tune-0"] == after["white-fpn-fine_tune-0"]


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_root() / "zoo").iterdir()))
def test_every_detector_of_the_shipped_manifests_has_a_config(name):
    manifest = load_manifest(Path(name))
    entries = expand(manifest)
    # One of each kind, attack and schedule; the others differ in what they draw.
    chosen = {
        (entry.truth, entry.detector, entry.attack, entry.schedule): entry for entry in entries
    }
    some = list(chosen.values())[:: max(1, len(chosen) // 12)]
    for entry in some:
        cfg = training_config(manifest, entry)
        assert (cfg.ATTACK.EFFECT != "") == (entry.truth != "clean")
    backdoored = [entry for entry in entries if entry.truth == "backdoored"]
    from_scratch = [entry for entry in backdoored if entry.schedule == "scratch"]
    assert len(from_scratch) * 2 >= len(backdoored)


def test_tiny_is_as_large_as_it_must_be():
    entries = expand(load_manifest(Path("tiny")))
    counts = Counter(entry.truth for entry in entries)
    assert counts["clean"] >= 60
    assert counts["backdoored"] >= 120
    assert counts["spurious"] > 0
    assert len({entry.detector for entry in entries}) == 4
    assert len(matching(entries, "disappearance_white-*")) == 8
