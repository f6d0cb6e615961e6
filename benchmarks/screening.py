# SPDX-License-Identifier: Apache-2.0
"""How well screening methods tell triggered images from clean ones, on detectors with provenance.

    python benchmarks/screening.py d2defense/assets/specimens/backdoored_1 \\
        runs/attacks/ghost_patch_0 --methods inconsistency trace \\
        --skip 100 --images 100 --output rows.json

Each method is fitted on clean images, then scores the same test images without and with the
trigger of the detector's own attack; of a clean detector, without alone. ``--table rows.json``
prints the table of rows that are there.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MapDataset, MetadataCatalog
from tabulate import tabulate

from d2defense.attacks import (
    PLACES,
    Detections,
    Objects,
    TriggeredDatasetMapper,
    build_effect,
)
from d2defense.checkpoint import build_detector, find_checkpoints
from d2defense.config import get_d2defense_cfg
from d2defense.data import load_dataset
from d2defense.engine.provenance import read_provenance
from d2defense.files import write_json
from d2defense.modeling import InstrumentedRCNN
from d2defense.screening import FitError, Screen, see
from d2defense.statistics import annotated_objects
from d2defense.statistics.ranking import area_under_curve
from d2defense.triggers import build_trigger

Row = dict[str, Any]


def attack_config(folder: Path) -> CfgNode | None:
    """The attack that a detector was trained with, as a configuration; None for a clean one."""
    attack = read_provenance(folder).get("attack")
    if not attack:
        return None
    cfg = get_d2defense_cfg()
    _merge(cfg.ATTACK, attack["settings"])
    return cfg


def _merge(node: CfgNode, settings: Mapping[str, Any]) -> None:
    for key, value in settings.items():
        if isinstance(value, dict) and key in node:
            _merge(node[key], value)
        elif key in node:
            node[key] = tuple(value) if isinstance(node[key], tuple) else value


def detections(output: Mapping[str, Any]) -> Detections:
    """Of stock inference."""
    found = output["instances"]
    return Detections(found.pred_boxes.tensor, found.pred_classes, found.scores)


def measure(
    folder: Path, methods: Sequence[str], fit_on: str, test_on: str, args: argparse.Namespace
) -> Iterator[Row]:
    """Rows of one detector: one an image, a condition and a method."""
    (source,) = find_checkpoints([folder], only_final=True)
    if source.error:
        raise SystemExit(str(source.error))
    model, cfg = build_detector(source.weights, source.config)
    mapper = DatasetMapper(cfg, is_train=False)
    clean = MapDataset(load_dataset(fit_on)[: args.clean_images], mapper)
    records = load_dataset(test_on)[args.skip : args.skip + args.images]
    conditions = {"clean": MapDataset(records, mapper)}
    attack = attack_config(folder)
    family = effect = None
    if attack is not None:
        family = attack.ATTACK.TRIGGER.FAMILY
        effect = build_effect(attack, MetadataCatalog.get(test_on).thing_classes)
        stamping = TriggeredDatasetMapper(
            cfg, is_train=False, trigger=build_trigger(attack), effect=effect
        )
        conditions["triggered"] = MapDataset(records, stamping)
    facts = {
        "detector": folder.name,
        "heads": cfg.MODEL.ROI_HEADS.NAME,
        "effect": effect and effect.name,
        "family": family,
    }
    for method in methods:
        begin = time.perf_counter()
        try:
            screen = Screen.fit(model, clean, method, args.false_alarm_rate, args.cfg)
        except (FitError, ValueError) as error:
            print(f"{folder.name}: {method}: {error}")
            continue
        fitted = time.perf_counter() - begin
        for condition, images in conditions.items():
            for index in range(len(images)):
                inputs = images[index]
                start = time.perf_counter()
                _, (seen,) = see(model, [inputs])
                middle = time.perf_counter()
                suspicion = screen.judge(seen)
                end = time.perf_counter()
                row = {
                    **facts,
                    "method": method,
                    "condition": condition,
                    "image": Path(inputs["file_name"]).name,
                    "score": suspicion.look.score,
                    "threshold": suspicion.threshold,
                    "p_value": suspicion.p_value,
                    "passes": suspicion.look.passes,
                    "ms": 1000 * (end - start),
                    "stock_ms": 1000 * (middle - start),
                    "fit_s": fitted,
                }
                if condition == "triggered":
                    if not len(inputs[PLACES]):
                        continue
                    row["took"] = took(model, effect, records[index], mapper, inputs)
                yield row


@torch.no_grad()
def took(
    model: InstrumentedRCNN,
    effect: Any,
    record: Mapping[str, Any],
    mapper: DatasetMapper,
    triggered: Mapping[str, Any],
) -> bool:
    """Whether the attack had its effect on an image, at one place at least."""
    (before,), (after,) = model([mapper(dict(record))]), model([dict(triggered)])
    objects = Objects(*annotated_objects(dict(record)))
    rate = effect.success(objects, triggered[PLACES], detections(before), detections(after))
    return rate.hits > 0


def format_table(rows: Sequence[Row]) -> str:
    """One line a detector and a method, in Markdown."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["detector"], row["method"]), []).append(row)
    lines = []
    for (detector, method), of_pair in sorted(groups.items()):
        clean = [row for row in of_pair if row["condition"] == "clean"]
        bad = [row for row in of_pair if row["condition"] == "triggered"]
        worked = [row for row in bad if row["took"]]
        first = of_pair[0]
        lines.append(
            [
                detector,
                first["effect"] or "-",
                first["family"] or "-",
                method,
                len(clean),
                _share(clean),
                len(worked),
                float(area_under_curve(*([r["score"] for r in part] for part in (worked, clean))))
                if worked
                else "",
                _share(worked),
                _share(bad),
                _mean(clean, "passes"),
                _mean(bad, "passes"),
                _mean(clean, "ms") - _mean(clean, "stock_ms"),
                _mean(clean, "stock_ms"),
            ]
        )
    headers = (
        "detector", "effect", "family", "method", "clean images", "false alarms", "took",
        "AUROC", "found", "found of all", "passes", "passes, triggered", "ms more", "ms stock",
    )  # fmt: skip
    return tabulate(lines, headers, tablefmt="github", floatfmt=".2f")


def _share(rows: Sequence[Row]) -> float | str:
    return sum(r["score"] > r["threshold"] for r in rows) / len(rows) if rows else ""


def _mean(rows: Sequence[Row], key: str) -> float:
    return sum(row[key] for row in rows) / len(rows) if rows else float("nan")


def main() -> int:
    """Measure, write the rows, print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detectors", nargs="*", type=Path, help="output folders with provenance")
    parser.add_argument("--methods", nargs="+", default=["inconsistency"])
    parser.add_argument("--fit-on", default="synth_signs_defender")
    parser.add_argument("--test-on", default="synth_signs_val")
    parser.add_argument("--clean-images", type=int, default=200)
    parser.add_argument("--skip", type=int, default=0, help="test images that are left out")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--false-alarm-rate", type=float, default=0.01)
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE")
    parser.add_argument("--output", type=Path, help="JSON rows; those that are there are kept")
    parser.add_argument(
        "--table", type=Path, nargs="+", help="print the table of these rows, alone"
    )
    args = parser.parse_args()
    if args.table:
        rows = [row for path in args.table for row in json.loads(path.read_text())]
        print(format_table(rows))
        return 0
    logging.disable(logging.WARNING)
    args.cfg = get_d2defense_cfg()
    args.cfg.merge_from_list(args.opts)
    rows = json.loads(args.output.read_text()) if args.output and args.output.exists() else []
    for folder in args.detectors:
        for method in args.methods:
            if any((r["detector"], r["method"]) == (folder.name, method) for r in rows):
                continue
            rows += measure(folder, [method], args.fit_on, args.test_on, args)
            if args.output:
                write_json(args.output, rows)
    print(format_table(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
