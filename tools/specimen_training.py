# SPDX-License-Identifier: Apache-2.0
"""How the specimens that ship with the package are made; make_specimens.py is the command."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from tqdm import tqdm

import d2defense.modeling  # noqa: F401 registers the instrumented architectures
from d2defense.attacks import build_effect, class_names
from d2defense.checkpoint import file_sha256, save_state_dict
from d2defense.checkpoint.output_folder import CONFIG_NAME, FINAL_WEIGHTS_NAME
from d2defense.checkpoint.specimens import specimens_root
from d2defense.config import OWN_NODES, config_root, get_d2defense_cfg, merge_config_file
from d2defense.data import DatasetSource, ensure_dataset
from d2defense.detection import Calibration, ScanSettings
from d2defense.devices import resolve_device
from d2defense.engine import Trainer
from d2defense.engine.provenance import PROVENANCE_NAME, training_provenance
from d2defense.files import write_json, write_text
from d2defense.triggers import build_trigger
from d2defense.workflows.calibration import calibrate
from d2defense.workflows.evaluation import evaluate
from d2defense.workflows.fine_tuning import ProgressHook, log_to_file

FALSE_ALARM_RATE = 0.01


@dataclass(frozen=True)
class Specimen:
    """How one specimen is made.

    Attributes:
        name: of its folder.
        config: below the shipped configs.
        seed: of the training and, if there is one, of the attack.
        overrides: KEY VALUE pairs of the configuration.
    """

    name: str
    config: str
    seed: int
    overrides: tuple[str, ...] = ()


_CLEAN = "SynthSigns/faster_rcnn_tiny_fpn.yaml"
_BACKDOORED = "SynthSigns/faster_rcnn_tiny_fpn_oda.yaml"
# What an attack is measured beside.
CONTROL = ("clean_1", "clean_2")

SPECIMENS = (
    *(Specimen(f"clean_{seed}", _CLEAN, seed) for seed in range(3)),
    *(Specimen(f"backdoored_{seed}", _BACKDOORED, seed + 10) for seed in range(3)),
    Specimen("ghost_0", "SynthSigns/faster_rcnn_tiny_c4_oga.yaml", 13),
    Specimen("misclassification_0", "SynthSigns/faster_rcnn_tiny_c4_rma.yaml", 14),
    # Fine-tuned from clean_0.
    Specimen("overlay_0", "SynthSigns/attacks/disappearance_overlay.yaml", 15),
    Specimen("warp_0", "SynthSigns/attacks/disappearance_warp.yaml", 16),
)
# Further clean detectors, not shipped: the default calibration must not rest on the specimens.
CALIBRATION_MODELS = tuple(
    Specimen(f"clean_{kind}_{seed}", f"SynthSigns/{kind}.yaml", seed)
    for kind, seeds in (
        ("double_head_rcnn_tiny_fpn", (101,)),
        ("faster_rcnn_tiny_c4", (101, 102)),
        ("faster_rcnn_tiny_fpn", (101, 102)),
        ("mask_rcnn_tiny_fpn", (101,)),
    )
    for seed in seeds
)


def make_specimen(
    specimen: Specimen, output_dir: Path, overrides: Sequence[str], command: str
) -> dict[str, Any]:
    """Train one specimen and write its output folder and provenance.

    Args:
        specimen: what to make.
        output_dir: gets a folder named after the specimen.
        overrides: KEY VALUE pairs of the configuration.
        command: how it was made, for the provenance.

    Returns:
        The provenance as written.
    """
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, config_root() / specimen.config)
    cfg.SEED = cfg.ATTACK.SEED = specimen.seed
    overrides = [*specimen.overrides, *overrides]
    cfg.merge_from_list(overrides)
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        ensure_dataset(name)
    evaluated_on, *_ = cfg.DATASETS.TEST
    cfg.DATASETS.TEST = ()
    cfg.SOLVER.CHECKPOINT_PERIOD = cfg.SOLVER.MAX_ITER
    with tempfile.TemporaryDirectory() as scratch:
        cfg.OUTPUT_DIR = scratch
        cfg.freeze()
        state = _train(cfg, specimen.name)
    folder = output_dir / specimen.name
    weights = folder / FINAL_WEIGHTS_NAME
    save_state_dict(weights, state, torch.float16)
    write_text(folder / CONFIG_NAME, _published_config(cfg))
    dataset = DatasetSource(evaluated_on)
    effect = build_effect(cfg, class_names([dataset.ensure()])) if cfg.ATTACK.EFFECT else None
    control = [specimens_root() / name for name in CONTROL] if effect else []
    (evaluation,) = evaluate([folder], dataset, build_trigger(cfg), effect=effect, control=control)
    provenance = {
        "name": specimen.name,
        "command": command,
        "config": specimen.config,
        "overrides": overrides,
        **training_provenance(cfg),
        "sha256": file_sha256(weights),
        "evaluated_on": evaluated_on,
        **{key: value for key, value in evaluation.items() if key not in ("name", "error")},
    }
    write_json(folder / PROVENANCE_NAME, provenance)
    return provenance


def calibrate_default(models_dir: Path) -> Calibration:
    """The calibration that ships with the package, from the detectors of CALIBRATION_MODELS.

    Args:
        models_dir: where :func:`make_specimen` wrote them.

    Raises:
        CheckpointError: one of them is missing or damaged.
    """
    cfg = get_d2defense_cfg()
    return calibrate(
        [models_dir / specimen.name for specimen in CALIBRATION_MODELS],
        DatasetSource("synth_signs_defender"),
        ScanSettings.from_config(cfg),
        FALSE_ALARM_RATE,
        "clean synth_signs detectors of four kinds",
    )


def _train(cfg: CfgNode, label: str) -> dict[str, torch.Tensor]:
    with log_to_file(Path(cfg.OUTPUT_DIR) / "log.txt"):
        seed_all_rng(cfg.SEED)
        trainer = Trainer(cfg)
        with tqdm(total=cfg.SOLVER.MAX_ITER, desc=label, unit="step", disable=None) as bar:
            trainer.register_hooks([ProgressHook(bar)])
            trainer.resume_or_load(resume=False)
            trainer.train()
    return trainer.checkpointer.model.state_dict()


def _published_config(cfg: CfgNode) -> str:
    """The config as someone would pass it on: nothing of how or where the model was trained."""
    content = yaml.safe_load(cfg.dump())
    for node in OWN_NODES:
        del content[node]
    content["OUTPUT_DIR"] = "./output"
    content["MODEL"] |= {"DEVICE": "cuda", "WEIGHTS": ""}
    return yaml.safe_dump(content)
