# SPDX-License-Identifier: Apache-2.0
"""Which removal methods remove?"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from d2defense.checkpoint import CheckpointSource, file_sha256, find_checkpoints
from d2defense.config import get_d2defense_cfg
from d2defense.data import DatasetSource
from d2defense.data.split import write_part
from d2defense.detection import ScanSettings, calibration_from_config
from d2defense.detection.images import sample_records
from d2defense.files import write_json
from d2defense.registry import REMOVAL_REGISTRY, TASK_REGISTRY, Registry
from d2defense.triggers import Trigger
from d2defense.workflows.evidence import SEARCH_LEVEL, informed, searched_goals
from d2defense.workflows.fine_tuning import DEFAULT_METHOD, FineTuningOptions, fine_tune
from d2defense.workflows.pseudo_labels import PSEUDO_LABELS_FILE, pseudo_labelled
from d2defense.workflows.scan import find_sources, scan

from ..zoo.actions import attack_cfg, measure_attack
from ..zoo.index import ZooDetector
from .base import Measurement, Task, TaskOptions, TaskResult

# What a repaired detector learns on when it is trained further.
_LATER = "vanilla"
#: By the name of the command; it is no method of its own.
PRODUCT = "repair"


class Product:
    """d2defense's repair: it scans, and goes by what the scan has found."""


class _Repairs(Registry):
    """The removal methods, whichever there are, and the product."""

    def __contains__(self, name: object) -> bool:
        return name == PRODUCT or name in REMOVAL_REGISTRY

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return iter(sorted([*REMOVAL_REGISTRY, (PRODUCT, Product)]))

    def get(self, name: str) -> Any:
        """The part of a name; raises as any registry does."""
        if name == PRODUCT:
            return Product
        return REMOVAL_REGISTRY.get(name) if name in self else super().get(name)


@TASK_REGISTRY.register("repair")
class Repairing(Task):
    """Which methods remove a backdoor, and at what cost? ASR, TDR and AP after, before, and later.

    Every removal method on the defender's images, with its defaults but for ``--opts``, and told
    nothing. ``repair`` is ``d2defense repair``: it scans the detector on these images first, and
    what the scan has found says which method, and what that is told. ``ap`` is of the repaired
    detector on clean images, ``ap_before`` of the one that was given, ``ap_drop`` what the repair
    cost, which on clean detectors is all that it does. Where an attack took, ``asr`` and ``tdr``
    say what is left of it, and ``control_asr`` what the same trigger does to clean detectors. With
    ``--later-steps`` the repaired detector is then trained further, plainly, on other images:
    ``asr_later`` says whether the backdoor comes back.
    """

    methods = _Repairs("removal method", __package__)
    usual_images = 0

    def applies(self, detector: ZooDetector) -> bool:
        """Whether there is an attack to remove, with settings to measure it by, or none at all."""
        return detector.facts["truth"] in ("clean", "spurious") or detector.has_known_attack

    def conditions(self, options: TaskOptions) -> Mapping[str, Any]:
        """What is trained on, and what is measured on."""
        found: dict[str, Any] = {
            "labels": "given" if options.has_labels else "none",
            "later_steps": options.later_steps,
            "test": options.test.name,
            "test_images": options.test_images or len(options.test.load()),
        }
        if options.later_steps and options.further is not None:
            found["further"] = options.further.name
        return found | ({"opts": list(options.overrides)} if options.overrides else {})

    def begin(
        self, detector: ZooDetector, source: CheckpointSource, options: TaskOptions
    ) -> Mapping[str, float | None]:
        """What the detector does before any repair, kept for other methods and other runs."""
        known = detector.facts["control_asr"]
        control = options.references if known is None else ()
        what: list[Any] = [file_sha256(each.weights) for each in (source, *control)]
        what += [detector.attack_settings(), options.test.name, options.test_images]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        kept = options.work / "before" / f"{digest}.json"
        if not kept.is_file():
            paths = [each.path for each in control]
            write_json(kept, _measured(detector, source.path, options, paths))
        found = json.loads(kept.read_text(encoding="utf-8"))
        return found if known is None or "asr" not in found else found | {"control_asr": known}

    def measure(
        self,
        method: str,
        detector: ZooDetector,
        source: CheckpointSource,
        options: TaskOptions,
        shared: Mapping[str, float | None],
    ) -> TaskResult:
        """Repair, and measure what it cost and what is left of the attack."""
        what = [options.images.fingerprint, options.seed, self.conditions(options)]
        digest = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:8]
        output = options.work / "repair" / f"{detector.name}-{method}-{digest}"
        data = _given(options)
        if not options.has_labels:
            data = pseudo_labelled(source, data, output / PSEUDO_LABELS_FILE, options.device)
        chosen = FineTuningOptions(method=method, seed=options.seed, overrides=options.overrides)
        told: dict[str, Any] = {}
        start = time.perf_counter()
        if method == PRODUCT:
            scanned, bank = _scanned(source, data, output / "scan", options)
            chosen = informed(replace(chosen, method=DEFAULT_METHOD), scanned, True, bank)
            told = {"method": chosen.method, "told": list(searched_goals(scanned))}
        seconds = time.perf_counter() - start
        done = fine_tune(source, data, output, chosen, options.device)
        after = _measured(detector, output, options)
        found = [*_named(after), *_named(shared, "_before")]
        if None not in (after["ap"], shared["ap"]):
            found.append(Measurement("ap_drop", shared["ap"] - after["ap"]))
        if options.later_steps:
            (repaired,) = find_checkpoints([output], only_final=True)
            steps = ("REMOVAL.SOLVER.MAX_ITER", str(options.later_steps))
            chosen = FineTuningOptions(method=_LATER, seed=options.seed, overrides=steps)
            later = output / "later"
            fine_tune(repaired, options.further or data, later, chosen, options.device)
            found += _named(_measured(detector, later, options), "_later")
        images = f"{len(data.load())} images to train on"
        return TaskResult(
            found,
            {"modules": list(done.modules), "batch_size": done.batch_size} | told,
            images if options.has_labels else f"{images}, without labels",
            seconds + done.seconds,
        )


def _scanned(
    source: CheckpointSource, data: DatasetSource, output: Path, options: TaskOptions
) -> tuple[Mapping[str, Any], Sequence[Trigger]]:
    """What a scan before a repair finds, and the bank that it has tried."""
    cfg = get_d2defense_cfg()
    cfg.DEFENSE.SEARCH, cfg.DEFENSE.SEARCH_ALWAYS = SEARCH_LEVEL, True
    settings = ScanSettings.from_config(cfg)
    calibration = calibration_from_config(cfg, settings)
    found = find_sources([source.path], only_final=True)
    device, references = options.device, options.references
    (result,) = scan(found, data, output, settings, calibration, device, references=references)
    if result["error"]:
        raise ValueError(f"what is wrong with it is not known: {result['error']}")
    return result, settings.triggers


def _measured(
    detector: ZooDetector, path: Path, options: TaskOptions, control: Sequence[Path] = ()
) -> dict[str, float | None]:
    """AP on clean images, and what the detector's attack does if it has one."""
    test, has_attack = _test(options), detector.has_known_attack
    cfg = attack_cfg(detector.attack_settings()) if has_attack else get_d2defense_cfg()
    seen = measure_attack(path, cfg, test, options.device, control if has_attack else ())
    names = ("asr", "tdr", *["control_asr"] * bool(control)) if has_attack else ()
    return {"ap": seen["clean"]["AP"], **{name: seen[name] for name in names}}


def _named(measured: Mapping[str, float | None], suffix: str = "") -> Iterator[Measurement]:
    for name, value in measured.items():
        # The control is of no time.
        yield Measurement(name if name == "control_asr" else f"{name}{suffix}", value)


def _given(options: TaskOptions) -> DatasetSource:
    """The defender's images that a repair may use."""
    chosen = [record["image_id"] for record in options.images.records]
    if len(chosen) == len(sample_records(options.defender.load(), 0, options.seed)):
        return options.defender
    return _part(options.defender, chosen, options)


def _test(options: TaskOptions) -> DatasetSource:
    records = options.test.load()
    if not 0 < options.test_images < len(records):
        return options.test
    first = sorted(record["image_id"] for record in records)[: options.test_images]
    return _part(options.test, first, options)


def _part(dataset: DatasetSource, image_ids: Sequence[Any], options: TaskOptions) -> DatasetSource:
    metadata = MetadataCatalog.get(dataset.name)
    digest = hashlib.sha256(json.dumps([dataset.name, list(image_ids)]).encode()).hexdigest()[:12]
    path = options.work / "data" / f"{digest}.json"
    if not path.is_file():
        write_part(Path(metadata.json_file), path, image_ids)
    return DatasetSource(str(path), str(path), str(metadata.image_root))
