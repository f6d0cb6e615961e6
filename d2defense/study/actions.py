# SPDX-License-Identifier: Apache-2.0
"""What the steps of a study do: each function is one action, called in a worker process.

An action gets the workplace, its arguments, and the results of the steps it needs. It returns its
result, as JSON has it; ``files`` in it are paths below the study's folder that later steps read.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from d2defense.checkpoint import (
    CheckpointSource,
    build_detector,
    find_checkpoints,
)
from d2defense.checkpoint.output_folder import FINAL_WEIGHTS_NAME
from d2defense.checkpoint.specimens import find_specimen
from d2defense.config import config_root, get_d2defense_cfg, merge_overrides
from d2defense.data import DatasetSource
from d2defense.data.split import split_coco
from d2defense.detection import (
    ScanImages,
    ScanSettings,
    calibration_from_config,
    inspect_detector,
    open_subject,
)
from d2defense.engine.provenance import read_provenance
from d2defense.evaluation import evaluate_detector
from d2defense.files import write_bytes
from d2defense.modeling import classification_modules
from d2defense.report.figures import draw_heatmaps
from d2defense.triggers import build_trigger
from d2defense.user_modules import imported_modules
from d2defense.workflows.classes import check_classes
from d2defense.workflows.examples import make_example
from d2defense.workflows.fine_tuning import FineTuningOptions, fine_tune

from .workplace import Workplace, end_with

Result = dict[str, Any]


class StepError(RuntimeError):
    """A step could not be done; the message is one line."""


def train(
    workplace: Workplace,
    output: str,
    config: str,
    overrides: Sequence[Any],
    data: Sequence[str] = (),
    start: Mapping[str, Any] | None = None,
) -> Result:
    """Train a detector with ``d2defense train``, from where an earlier attempt ended.

    Args:
        workplace: where.
        output: folder of the detector.
        config: below the shipped configs, or the whole path of another.
        overrides: KEY VALUE pairs of the configuration.
        data: options that name data of one's own.
        start: result of the step that made the weights it starts from.

    Raises:
        StepError: the training ended with an error.
    """
    folder = workplace.folder / output
    folder.mkdir(parents=True, exist_ok=True)
    pairs = [*overrides, "OUTPUT_DIR", folder]
    if start:
        pairs += ["MODEL.WEIGHTS", workplace.folder / start["weights"]]
    options = ["--config-file", config_root() / config, "--resume", "--num-gpus"]
    modules = [part for name in imported_modules() for part in ("--import", name)]
    arguments = ["train", *modules, *options, workplace.num_gpus, *data, *pairs]
    command = [sys.executable, "-m", "d2defense.cli.program", *map(str, arguments)]
    log = folder / "train.log"
    parent = os.getpid()
    with open(log, "ab") as stream:
        ended = subprocess.run(
            command,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": str(workplace.threads)},
            preexec_fn=lambda: end_with(parent),
            check=False,
        )
    if ended.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise StepError(f"{lines[-1] if lines else 'no output'} (see {log})")
    for intermediate in folder.glob("model_[0-9]*.pth"):
        # Each with the optimizer's state several times the size of the detector.
        intermediate.unlink()
    shown = [*modules, "--config-file", str(Path("configs", config)), *data, *map(str, overrides)]
    weights = f"{output}/{FINAL_WEIGHTS_NAME}"
    return {
        "checkpoint": output,
        "weights": weights,
        "files": [weights],
        "command": shlex.join(["python", "tools/train_net.py", *shown]),
        "training": read_provenance(folder).get("result"),
    }


def use(workplace: Workplace, specimen: str) -> Result:
    """Take a shipped specimen, in the place of a detector that is trained.

    Args:
        workplace: where.
        specimen: its name.
    """
    source = find_specimen(specimen)
    return {"checkpoint": str(source.path), "weights": str(source.weights), "files": []}


def split(workplace: Workplace, dataset: Mapping[str, Any], output: str, images: int) -> Result:
    """Set some images of a COCO-format dataset aside; see :func:`split_coco`.

    Args:
        workplace: where.
        dataset: see :func:`dataset_source`.
        output: folder of the two annotation files.
        images: how many.
    """
    source = dataset_source(workplace, dataset)
    source.load()
    metadata = MetadataCatalog.get(source.name)
    defender, rest = split_coco(Path(metadata.json_file), workplace.folder / output, images, seed=0)
    parts = {"defender": defender, "rest": rest}
    return {
        "files": [f"{output}/{path.name}" for path in parts.values()],
        **{
            part: {"json_file": f"{output}/{path.name}", "image_root": metadata.image_root}
            for part, path in parts.items()
        },
    }


def scan(
    workplace: Workplace,
    dataset: Mapping[str, Any],
    settings: Sequence[Any],
    model: Mapping[str, Any],
    parts: Mapping[str, Any] | None = None,
) -> Result:
    """Scan a detector with the shipped calibration, in this process.

    Args:
        workplace: where.
        dataset: clean images; see :func:`dataset_source`.
        settings: KEY VALUE pairs of the configuration.
        model: result of the step that made the detector.
        parts: see :func:`dataset_source`.
    """
    cfg = _defense_config(settings)
    scan_settings = ScanSettings.from_config(cfg).without_search()
    calibration = calibration_from_config(cfg, scan_settings)
    images = ScanImages.load(dataset_source(workplace, dataset, parts), scan_settings)
    source = _source(workplace.folder / model["checkpoint"])
    detector, clean, detector_cfg = open_subject(source, images, scan_settings, workplace.device)
    inspection = inspect_detector(
        detector,
        clean,
        scan_settings,
        calibration,
        detector_cfg.INPUT.FORMAT,
        fingerprint=images.fingerprint,
    )
    verdict = inspection.verdict
    return {
        "verdict": verdict.label,
        "reason": verdict.reason,
        "score": verdict.score,
        "threshold": verdict.threshold,
        "worst_trigger": inspection.worst_trigger,
        "dominant_modules": inspection.dominant_modules,
        "classification_modules": list(classification_modules(detector)),
        "images": images.fingerprint,
        **inspection.fields,
    }


def repair(
    workplace: Workplace,
    output: str,
    dataset: Mapping[str, Any],
    method: str,
    modules: Sequence[str] | None,
    overrides: Sequence[Any],
    seed: int,
    model: Mapping[str, Any],
    keep_every: int = 0,
    evidence: Mapping[str, Any] | None = None,
    parts: Mapping[str, Any] | None = None,
) -> Result:
    """Fine-tune a detector on the defender's set.

    Args:
        workplace: where.
        output: folder of the repaired detector.
        dataset: the defender's set; see :func:`dataset_source`.
        method: of ``REMOVAL_REGISTRY``.
        modules: to reset; None for those that ``evidence`` names.
        overrides: KEY VALUE pairs of the configuration.
        seed: of the reset and the training.
        model: result of the step that made the detector.
        keep_every: also keep the weights every so many steps.
        evidence: result of its scan.
        parts: see :func:`dataset_source`.
    """
    if modules is None and evidence:
        modules = evidence["dominant_modules"] or None
    options = FineTuningOptions(
        modules, method, seed, [str(value) for value in overrides], keep_every
    )
    done = fine_tune(
        _source(workplace.folder / model["checkpoint"]),
        dataset_source(workplace, dataset, parts),
        workplace.folder / output,
        options,
        workplace.device,
    )
    return {
        "checkpoint": output,
        "files": [f"{output}/{FINAL_WEIGHTS_NAME}"],
        "modules": list(done.modules),
        "seconds": done.seconds,
    }


def evaluate(
    workplace: Workplace,
    dataset: Mapping[str, Any],
    trigger: Sequence[Any],
    model: Mapping[str, Any],
    weights: str = "",
    parts: Mapping[str, Any] | None = None,
) -> Result:
    """Measure a detector on clean and on triggered images.

    Args:
        workplace: where.
        dataset: true annotations; see :func:`dataset_source`.
        trigger: KEY VALUE pairs of ``ATTACK.TRIGGER``.
        model: result of the step that made the detector.
        weights: file of its folder, the final weights if empty.
        parts: see :func:`dataset_source`.
    """
    source = _source(workplace.folder / model["checkpoint"] / weights)
    detector, cfg = build_detector(source.weights, source.config, workplace.device)
    name = dataset_source(workplace, dataset, parts).ensure()
    check_classes(name, cfg)
    return evaluate_detector(detector, cfg, name, build_trigger(_defense_config(trigger)))


def heatmaps(
    workplace: Workplace,
    dataset: Mapping[str, Any],
    trigger: Sequence[Any],
    output: str,
    title: str,
    parts: Mapping[str, Any] | None = None,
    **models: Mapping[str, Any],
) -> Result:
    """Heat maps of the inconsistency on one triggered image, a detector each (Figure 3).

    Args:
        workplace: where.
        dataset: whose first image is shown; see :func:`dataset_source`.
        trigger: KEY VALUE pairs of ``ATTACK.TRIGGER``.
        output: PNG file.
        title: above the picture.
        parts: see :func:`dataset_source`.
        models: results of the steps that made the detectors, by label.
    """
    cfg = _defense_config(["DEFENSE.MAX_IMAGES", 1])
    settings = ScanSettings.from_config(cfg).without_search()
    images = ScanImages.load(dataset_source(workplace, dataset, parts), settings)
    stamp = build_trigger(_defense_config(trigger))
    examples = {}
    for label, model in models.items():
        source = _source(workplace.folder / model["checkpoint"])
        detector, (image,), cfg = open_subject(source, images, settings, workplace.device)
        examples[label.replace("_", " ")] = make_example(
            detector, image, stamp, cfg.INPUT.FORMAT, images.class_names
        )
    write_bytes(workplace.folder / output, draw_heatmaps(examples, title))
    return {"files": [output]}


def dataset_source(
    workplace: Workplace, dataset: Mapping[str, Any], parts: Mapping[str, Any] | None = None
) -> DatasetSource:
    """The dataset that the arguments of a step describe.

    Args:
        workplace: where.
        dataset: ``{"name": ...}`` of a registered one, ``{"json_file": ..., "image_root": ...}``,
            or with ``"part"``, one of ``parts``.
        parts: result of the step that split the dataset.
    """
    if parts is not None:
        dataset = parts[dataset["part"]]
    if "name" in dataset:
        return DatasetSource(dataset["name"])
    json_file = str(workplace.folder / dataset["json_file"])
    return DatasetSource(json_file, json_file, str(workplace.folder / dataset["image_root"]))


def _source(path: Path | str) -> CheckpointSource:
    (source,) = find_checkpoints([path], only_final=True)
    if source.error:
        raise source.error
    return source


def _defense_config(overrides: Sequence[Any]) -> Any:
    cfg = get_d2defense_cfg()
    merge_overrides(cfg, [str(value) for value in overrides])
    return cfg
