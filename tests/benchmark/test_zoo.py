# SPDX-License-Identifier: Apache-2.0
"""A zoo's folder: index, check and export; and one that is built."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from d2defense.benchmark.zoo.actions import deployed_config
from d2defense.benchmark.zoo.check import check_zoo
from d2defense.benchmark.zoo.export import export_zoo, read_labels
from d2defense.benchmark.zoo.index import ZooError, find_detectors, write_index
from d2defense.checkpoint import build_detector, file_sha256, find_checkpoints, load_state_dict
from d2defense.checkpoint.specimens import specimens_root


@pytest.fixture
def zoo(tmp_path: Path, untrained_checkpoint: Path, make_tiny_cfg) -> Path:
    """Three detectors of the same weights, as publishing leaves them; the last is sequestered."""
    state = load_state_dict(untrained_checkpoint / "model_final.pth")
    cfg = make_tiny_cfg("ATTACK.EFFECT", "disappearance", "SEED", 12345)
    for number, truth in enumerate(("clean", "backdoored", "backdoored")):
        folder = tmp_path / "zoo" / "detectors" / f"d{number}"
        folder.mkdir(parents=True)
        weights = folder / "model_final.safetensors"
        save_file({key: value + number for key, value in state.items()}, weights)
        (folder / "config.yaml").write_text(deployed_config(cfg))
        metadata = {
            "name": f"d{number}",
            "zoo": "made_up",
            "truth": truth,
            "detector": "fpn",
            "attack": "" if truth == "clean" else "white",
            "effect": "" if truth == "clean" else "disappearance",
            "family": "",
            "target_class": "",
            "schedule": "scratch",
            "seed": 0,
            "training_seed": 99,
            "sequestered": number == 2,
            "took": None if truth == "clean" else True,
            "weights": {"file": weights.name, "sha256": file_sha256(weights)},
            "config": {"file": "config.yaml", "sha256": file_sha256(folder / "config.yaml")},
            "attack_settings": None,
            "verified": {"ap": 1.0, "asr": 0.9, "control_asr": 0.0, "tdr": 0.1},
        }
        (folder / "metadata.json").write_text(json.dumps(metadata))
    write_index(tmp_path / "zoo")
    return tmp_path / "zoo"


def test_a_published_detector_opens_as_any_checkpoint(zoo):
    detector = find_detectors(zoo)[0]
    (source,) = find_checkpoints([detector.folder], only_final=True)
    assert source.error is None
    _, cfg = build_detector(source.weights, source.config, "cpu")
    assert cfg.MODEL.ROI_HEADS.NUM_CLASSES == 7


def test_a_deployed_config_says_nothing_of_the_training(zoo):
    text = (zoo / "detectors" / "d1" / "config.yaml").read_text()
    assert set(yaml.safe_load(text)) == {"VERSION", "MODEL", "INPUT", "TEST"}
    assert "12345" not in text
    assert "disappearance" not in text


def test_a_zoo_as_it_should_be(zoo):
    seen: list[str] = []
    assert check_zoo(zoo, say=seen.append) == []
    assert seen == ["d0", "d1", "d2"]


def test_what_is_wrong_is_named(zoo):
    (zoo / "detectors" / "d0" / "config.yaml").write_text("VERSION: 2\n")
    (zoo / "detectors" / "d1" / "model_final.safetensors").unlink()
    (zoo / "detectors" / "d2" / "metadata.json").write_text("{}")
    wrong = check_zoo(zoo)
    assert [line.partition(":")[0] for line in wrong] == ["d0", "d1", "d2"]
    assert "SHA-256" in wrong[0]
    assert "metadata.json: lacks file and sha256 of weights" in wrong[2]


@pytest.mark.parametrize("name", ["../d0", "/etc", "..", "", "d0\x1b[2J", 3, None])
def test_no_name_of_an_index_leads_out_of_the_zoo(zoo, name):
    index = json.loads((zoo / "index.json").read_text())
    index["detectors"][0]["name"] = name
    (zoo / "index.json").write_text(json.dumps(index))
    with pytest.raises(ZooError, match=r"index\.json: .* is no name of a file"):
        find_detectors(zoo)


def test_no_file_of_metadata_lies_elsewhere(zoo, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("not of the zoo")
    path = zoo / "detectors" / "d0" / "metadata.json"
    metadata = json.loads(path.read_text())
    metadata["config"] = {"file": str(secret), "sha256": file_sha256(secret)}
    path.write_text(json.dumps(metadata))
    assert "is no name of a file" in check_zoo(zoo)[0]
    with pytest.raises(ZooError, match="is no name of a file"):
        export_zoo(zoo, tmp_path / "out.tar.gz", tmp_path / "labels.json")


@pytest.mark.parametrize(
    "provenance",
    [
        "no JSON",
        "{}",
        '{"attack": "white"}',
        '{"attack": {}}',
        '{"attack": {"effect": "ghost", "settings": null}}',
    ],
)
def test_a_provenance_that_makes_no_sense_is_named_and_not_taken_for_clean(tmp_path, provenance):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "model_final.pth").touch()
    (folder / "provenance.json").write_text(provenance)
    with pytest.raises(ZooError, match=r"odd/provenance\.json: cannot be used"):
        find_detectors(tmp_path)


def test_an_export_withholds_the_labels_of_the_sequestered(zoo, tmp_path):
    archive, labels = tmp_path / "out" / "zoo.tar.gz", tmp_path / "out" / "labels.json"
    assert export_zoo(zoo, archive, labels) == (2, 1)
    with tarfile.open(archive) as tar:
        assert {(member.mtime, member.uid) for member in tar.getmembers()} == {(0, 0)}
        tar.extractall(tmp_path / "unpacked", filter="data")
    found = find_detectors(tmp_path / "unpacked")
    (hidden,) = [each for each in found if each.facts["sequestered"]]
    for key in ("truth", "attack", "effect", "schedule", "seed", "took"):
        assert hidden.facts[key] is None
    # Nowhere in its files, either.
    for path in hidden.folder.iterdir():
        content = path.read_bytes()
        assert b"backdoored" not in content
        if path.suffix != ".safetensors":
            assert '"d2"' not in content.decode()
    told = read_labels(labels)[hidden.name]
    assert (told["truth"], told["effect"], told["detector"]) == (
        "backdoored",
        "disappearance",
        "fpn",
    )
    assert check_zoo(tmp_path / "unpacked") == []
    (known,) = [each for each in found if each.facts["truth"] == "backdoored"]
    assert known.facts["took"] is True


def test_every_export_draws_other_names(zoo, tmp_path):
    names = []
    for number in range(2):
        export_zoo(zoo, tmp_path / f"{number}.tar.gz", tmp_path / f"{number}.json")
        names += read_labels(tmp_path / f"{number}.json")
    assert len(set(names)) == 2


def test_specimens_are_a_zoo_by_their_provenance():
    by_name = {each.name: each for each in find_detectors(specimens_root())}
    assert by_name["clean_0"].facts["truth"] == "clean"
    ghost = by_name["ghost_0"]
    assert (ghost.facts["truth"], ghost.facts["effect"]) == ("backdoored", "ghost")
    assert ghost.facts["target_class"] == "stop"
    assert ghost.attack_settings()["EFFECT"] == "ghost"
    assert by_name["clean_0"].attack_settings() is None


def test_a_folder_without_detectors_is_no_zoo(tmp_path):
    with pytest.raises(ZooError, match=r"index\.json"):
        find_detectors(tmp_path)


@pytest.mark.slow
def test_a_zoo_is_built_once(tmp_path, signs_cache):
    from d2defense.benchmark.zoo.build import build_zoo
    from d2defense.benchmark.zoo.manifest import load_manifest

    short = {"SOLVER.MAX_ITER": 2, "SOLVER.WARMUP_ITERS": 1}
    manifest = {
        "name": "built",
        "data": {
            "train": "synth_signs_defender",
            "test": "synth_signs_defender",
            "defender": "synth_signs_defender",
        },
        "control": ["zoo://clean-fpn-scratch-0"],
        "detectors": {"fpn": {"config": "SynthSigns/faster_rcnn_tiny_fpn.yaml"}},
        "schedules": {
            "scratch": {"overrides": short},
            "fine_tune": {"start": "clean", "overrides": short},
        },
        "attacks": {"white": {"config": "SynthSigns/attacks/disappearance_white.yaml"}},
        "groups": [
            {"truth": "clean", "seeds": [0]},
            {"truth": "backdoored", "attacks": "all", "schedules": ["fine_tune"], "seeds": [0]},
        ],
    }
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump(manifest))
    loaded = load_manifest(path)
    built = build_zoo(loaded, tmp_path / "zoo", pattern="white-*")
    assert (built.detectors, built.there, built.failed) == (1, 1, {})
    (detector,) = find_detectors(tmp_path / "zoo")
    assert detector.facts["truth"] == "backdoored"
    assert detector.attack_settings()["EFFECT"] == "disappearance"
    assert check_zoo(tmp_path / "zoo") == []
    # What it began with is trained, and comes next without training again.
    trained = tmp_path / "zoo" / "training" / "clean-fpn-scratch-0" / "model_final.pth"
    before = trained.stat().st_mtime_ns
    assert build_zoo(loaded, tmp_path / "zoo").there == 2
    assert trained.stat().st_mtime_ns == before
    assert len(find_detectors(tmp_path / "zoo")) == 2
    # And with the trainings gone nothing is done again.
    shutil.rmtree(tmp_path / "zoo" / "training")
    assert build_zoo(loaded, tmp_path / "zoo").there == 2
    assert not (tmp_path / "zoo" / "training").exists()
