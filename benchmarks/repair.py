# SPDX-License-Identifier: Apache-2.0
"""What removal methods do to backdoors: attack, detections and AP before, after, and later.

    python benchmarks/repair.py d2defense/assets/specimens/ghost_0 runs/attacks/ghost_patch_0 \\
        --methods unlearn patch_augmentation --images 50 10 50u --output runs/repairs

Each detector is repaired with each number of images of the defender's set, "50u" without their
labels, and measured with the trigger and the effect that its provenance.json names, which no method
reads. Clean specimens under the same trigger are the control. With --later it is then fine-tuned
further on other images, plainly, and measured again: does the backdoor come back? A result that is
there is kept, so the command can be repeated. A minute of one quiet core a repair, or more.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from d2defense.attacks import build_effect, class_names
from d2defense.benchmark.zoo.actions import attack_cfg
from d2defense.checkpoint import CheckpointSource, file_sha256, find_checkpoints
from d2defense.checkpoint.specimens import specimens_root
from d2defense.cli.ending import run_to_end
from d2defense.data import DatasetSource
from d2defense.engine.provenance import PROVENANCE_NAME, read_provenance
from d2defense.files import write_json
from d2defense.registry import REMOVAL_REGISTRY
from d2defense.triggers import build_trigger
from d2defense.workflows.evaluation import evaluate
from d2defense.workflows.fine_tuning import FineTuningOptions, fine_tune
from d2defense.workflows.pseudo_labels import pseudo_labelled

CONTROL = ("clean_1", "clean_2")
FIELDS = ("AP", "asr", "control_asr", "tdr")


def part_of(name: str, count: int, folder: Path) -> DatasetSource:
    """The first images of a registered dataset."""
    metadata = MetadataCatalog.get(DatasetSource(name).ensure())
    document = json.loads(Path(metadata.json_file).read_text(encoding="utf-8"))
    document["images"] = sorted(document["images"], key=lambda image: image["id"])[:count]
    kept = {image["id"] for image in document["images"]}
    document["annotations"] = [a for a in document["annotations"] if a["image_id"] in kept]
    path = write_json(folder / f"{name}_{count}.json", document)
    return DatasetSource(str(path), str(path), str(metadata.image_root))


def attack_of(source: CheckpointSource) -> CfgNode:
    """The configuration of the attack that a detector's provenance names."""
    attack = read_provenance(source.weights.parent).get("attack")
    if attack is None:
        raise ValueError(f"{source.path}: its {PROVENANCE_NAME} names no attack")
    return attack_cfg(attack["settings"])


def measure(weights: Path, attack: CfgNode, test: DatasetSource) -> dict[str, float | None]:
    """AP on clean images, ASR with its control, and TDR."""
    effect = build_effect(attack, class_names([test.ensure()]))
    control = [specimens_root() / name for name in CONTROL]
    (found,) = evaluate([weights], test, build_trigger(attack), effect=effect, control=control)
    if found["error"]:
        raise ValueError(found["error"])
    return {"AP": found["clean"]["AP"], **{name: found[name] for name in FIELDS[1:]}}


def repair(
    source: CheckpointSource, method: str, images: str, args: argparse.Namespace
) -> dict[str, Any]:
    """One row of the table, kept in a file of its own."""
    settings = [file_sha256(source.weights), method, images, args.dataset, args.seed]
    settings += [args.test, args.test_images, args.later, args.further, *args.opts]
    digest = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    folder = args.output / f"{source.weights.parent.name}_{method}_{images}_{digest}"
    kept = folder / "row.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    attack = attack_of(source)
    test = part_of(args.test, args.test_images, args.output)
    data = part_of(args.dataset, int(images.rstrip("u")), args.output)
    if images.endswith("u"):
        data = pseudo_labelled(source, data, folder / "pseudo_labels.json")
    row: dict[str, Any] = {"detector": source.name, "method": method, "images": images}
    row["before"] = measure(source.weights, attack, test)
    done = fine_tune(source, data, folder, FineTuningOptions(None, method, args.seed, args.opts))
    row |= {"seconds": done.seconds, "after": measure(folder / "model_final.pth", attack, test)}
    if args.later:
        (repaired,) = find_checkpoints([folder / "model_final.pth"], only_final=True)
        steps = ["REMOVAL.SOLVER.MAX_ITER", str(args.later)]
        options = FineTuningOptions(None, "vanilla", args.seed, steps)
        fine_tune(repaired, DatasetSource(args.further), folder / "later", options)
        row["later"] = measure(folder / "later" / "model_final.pth", attack, test)
    write_json(kept, row)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """ASR, TDR and AP of every row, before, after and later."""
    times = [time for time in ("before", "after", "later") if any(time in row for row in rows)]
    headers = ["detector", "method", "images", "control ASR"]
    headers += [f"{name} {time}" for name in ("ASR", "TDR", "AP") for time in times]
    cells = []
    for row in rows:
        line = [row["detector"], row["method"], row["images"], _cell(row["before"], "control_asr")]
        line += [_cell(row.get(time), name) for name in ("asr", "tdr", "AP") for time in times]
        cells.append([*line, f"{row['seconds']:.0f}"])
    return tabulate(cells, [*headers, "seconds"], tablefmt="github", disable_numparse=True)


def _cell(measured: dict[str, float | None] | None, name: str) -> str:
    value = (measured or {}).get(name)
    return "-" if value is None else f"{value:.1f}" if name == "AP" else f"{value:.3f}"


def main() -> int:
    """Repair, measure, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("detectors", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--methods", nargs="+", default=list(REMOVAL_REGISTRY.choices()))
    parser.add_argument("--images", nargs="+", default=["200", "50", "10", "50u"])
    parser.add_argument("--dataset", default="synth_signs_defender", help="images to repair with")
    parser.add_argument("--test", default="synth_signs_val", help="images to measure on")
    parser.add_argument("--test-images", type=int, default=300)
    parser.add_argument("--later", type=int, default=0, metavar="STEPS", help="of benign training")
    parser.add_argument("--further", default="synth_signs_train", help="images of that training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for source in find_checkpoints(args.detectors, only_final=True):
        if source.error:
            parser.error(str(source.error))
        for images in args.images:
            for method in args.methods:
                rows.append(repair(source, method, images, args))
                print(table(rows[-1:]), flush=True)
    print(f"\nseed {args.seed}\n\n{table(rows)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_to_end(main, "repair.py"))
