# SPDX-License-Identifier: Apache-2.0
"""What is done for one detector of a zoo, each a step of :mod:`d2defense.study.runner`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from safetensors.torch import save

from d2defense.attacks import build_effect, class_names
from d2defense.checkpoint import file_sha256, find_checkpoints, load_state_dict
from d2defense.checkpoint.output_folder import CONFIG_NAME
from d2defense.checkpoint.specimens import PREFIX, specimens_root
from d2defense.config import get_d2defense_cfg
from d2defense.data import DatasetSource
from d2defense.engine.provenance import read_provenance
from d2defense.environment import library_versions
from d2defense.evaluation import judge_attack
from d2defense.files import write_bytes, write_json, write_text
from d2defense.study import actions
from d2defense.study.workplace import Workplace
from d2defense.triggers import build_trigger
from d2defense.workflows.evaluation import evaluate

from .index import DETECTORS, METADATA_NAME, WEIGHTS_NAME, write_index
from .manifest import OWN

CONTROLS = "controls"
# What is kept of a measurement.
_KEPT = ("asr", "tdr", "retain_rate", "effect", "coverage")


def train(
    workplace: Workplace,
    output: str,
    config: str,
    digest: str,
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train a detector, or go on with it.

    Args:
        workplace: the zoo's folder.
        output: folder of the training below it.
        config: the whole training configuration, as YAML.
        digest: of what it follows from.
        start: result of the step that trained the weights that it begins with.

    Raises:
        StepError: the training ended with an error.
    """
    folder = workplace.folder / output
    marker = folder / "digest.txt"
    if folder.is_dir() and (not marker.is_file() or marker.read_text() != digest):
        # What was trained with other settings is no beginning of this.
        for path in (*folder.glob("*.pth"), folder / "last_checkpoint"):
            path.unlink(missing_ok=True)
    write_text(marker, digest)
    file = write_text(folder / "training.yaml", config)
    result = actions.train(workplace, output, str(file.resolve()), (), start=start)
    return {key: result[key] for key in ("checkpoint", "weights", "files", "training")}


def publish(
    workplace: Workplace,
    facts: Mapping[str, Any],
    config: str,
    test: str,
    control: Sequence[str],
    model: Mapping[str, Any],
    **controls: Mapping[str, Any],
) -> dict[str, Any]:
    """Measure a trained detector, and put it into the zoo with what is known of it.

    Args:
        workplace: the zoo's folder.
        facts: what the manifest says of the detector.
        config: the whole training configuration, as YAML.
        test: registered dataset that it is measured on.
        control: clean detectors.
        model: result of the step that trained it.
        controls: by name, of the steps that trained those detectors of the control that are the
            zoo's own.

    Returns:
        The detector's metadata.
    """
    cfg = get_d2defense_cfg()
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(config)))
    source = DatasetSource(test)
    measured = measure_attack(workplace.folder / model["checkpoint"], cfg, source, workplace.device)
    paths = [control_path(name, workplace, controls) for name in control]
    control_asr, rates = _control(workplace, cfg, source, paths)
    verified = {
        "test": source.name,
        "ap": measured["clean"]["AP"],
        "ap50": measured["clean"]["AP50"],
        "ap_triggered": measured["triggered"]["AP"],
        "objects_found": measured["clean"]["objects_found"],
        **{key: measured[key] for key in _KEPT},
        **judge_attack(measured["asr"], control_asr),
        "control": rates,
    }
    training = workplace.folder / model["checkpoint"]
    provenance = read_provenance(training)
    folder = workplace.folder / DETECTORS / facts["name"]
    tensors = load_state_dict(workplace.folder / model["weights"])
    contiguous = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    weights = write_bytes(folder / WEIGHTS_NAME, save(contiguous))
    write_text(folder / CONFIG_NAME, deployed_config(cfg))
    metadata = {
        **facts,
        "took": bool(verified["attack_took"]) if facts["truth"] == "backdoored" else None,
        "weights": {"file": WEIGHTS_NAME, "sha256": file_sha256(weights)},
        "config": {"file": CONFIG_NAME, "sha256": file_sha256(folder / CONFIG_NAME)},
        "attack_settings": (provenance.get("attack") or {}).get("settings"),
        "datasets": provenance.get("datasets"),
        "training": model["training"],
        "verified": verified,
        "versions": library_versions(),
    }
    write_json(folder / METADATA_NAME, metadata)
    write_index(workplace.folder)
    return metadata


def deployed_config(cfg: CfgNode) -> str:
    """What a user of a detector needs of its configuration, as YAML: nothing of how it came to be.

    Neither attack nor schedule nor seed is in it.
    """
    kept = CfgNode({"VERSION": cfg.VERSION, "MODEL": cfg.MODEL.clone(), "INPUT": cfg.INPUT.clone()})
    kept.TEST = CfgNode({"DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE})
    kept.MODEL.WEIGHTS = ""
    kept.MODEL.DEVICE = "cpu"
    return kept.dump()


def attack_cfg(settings: Mapping[str, Any]) -> CfgNode:
    """The configuration with the ``ATTACK`` node of a detector's metadata."""
    cfg = get_d2defense_cfg()
    cfg.merge_from_other_cfg(CfgNode({"ATTACK": settings}))
    return cfg


def control_path(name: str, workplace: Workplace, own: Mapping[str, Mapping[str, Any]]) -> Path:
    """The folder of one of the control's detectors.

    Args:
        name: a path, ``specimen://NAME`` or ``zoo://NAME``.
        workplace: the zoo's folder.
        own: results of the trainings of the last kind, by name.
    """
    if name.startswith(OWN):
        return workplace.folder / own[name.removeprefix(OWN)]["checkpoint"]
    if name.startswith(PREFIX):
        return specimens_root() / name.removeprefix(PREFIX)
    return Path(name)


def measure_attack(
    path: Path,
    cfg: CfgNode,
    dataset: DatasetSource,
    device: str | None = None,
    control: Sequence[Path] = (),
) -> dict[str, Any]:
    """What an evaluation says of one detector under the attack of a configuration.

    Args:
        path: of the detector.
        cfg: has ``ATTACK``.
        dataset: images to measure on.
        device: of the model; its config's choice if None.
        control: clean detectors to measure under the same attack.

    Returns:
        As :func:`~d2defense.workflows.evaluation.evaluate`.

    Raises:
        DatasetError: the dataset cannot be used.
        StepError: the detector cannot be measured.
    """
    dataset.ensure()
    effect = build_effect(cfg, class_names([dataset.name]))
    (result,) = evaluate(
        [path], dataset, build_trigger(cfg), device, effect=effect, control=control
    )
    if result["error"]:
        raise actions.StepError(result["error"])
    return result


def _control(
    workplace: Workplace, cfg: CfgNode, dataset: DatasetSource, control: Sequence[Path]
) -> tuple[float | None, dict[str, float | None]]:
    """The mean ASR of the control under an attack, and that of each; kept for the next detector."""
    weights = [file_sha256(source.weights) for source in find_checkpoints(control, only_final=True)]
    content = [cfg.ATTACK.dump(), dataset.name, weights]
    key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    path = workplace.folder / CONTROLS / f"{key}.json"
    if path.is_file():
        rates = json.loads(path.read_text(encoding="utf-8"))
    else:
        rates = {
            each.name: measure_attack(each, cfg, dataset, workplace.device)["asr"]
            for each in control
        }
        write_json(path, rates)
    known = [rate for rate in rates.values() if rate is not None]
    return (sum(known) / len(known) if known else None), rates
