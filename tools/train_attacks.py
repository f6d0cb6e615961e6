#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the shipped attacks and measure what they reach: the table of docs/attacks.md.

    python tools/train_attacks.py                       # all of them, two hours of one core
    python tools/train_attacks.py ghost_patch --seed 1
    python tools/train_attacks.py --folder my/attacks --results my/results

Each attack is trained by tools/train_net.py, and measured on synth_signs_val together with clean
specimens that bear the same trigger, the control. The shipped ones are the files of
configs/SynthSigns/attacks, and ghost and misclassification by patch for the detectors of the folder
above. A result that is there for the same settings is kept, and a training that was killed goes on,
so the command can be repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tqdm import tqdm

from d2defense.cli.ending import FAILED, run_to_end
from d2defense.config import OWN_NODES, config_root, get_d2defense_cfg, merge_config_file
from d2defense.files import write_json

ROOT = Path(__file__).resolve().parents[1]
# clean_0 is what the attacks start from.
CONTROL = ("clean_1", "clean_2")
TESTED_ON = "synth_signs_val"
SHIPPED = config_root() / "SynthSigns" / "attacks"
# Ghosts and misclassification by patch. Disappearance of these detectors (`_oda`) is measured in
# docs/study.
OTHER_DETECTORS = [
    f"{detector}_{attack}.yaml"
    for detector in ("faster_rcnn_tiny_c4", "mask_rcnn_tiny_fpn", "double_head_rcnn_tiny_fpn")
    for attack in ("oga", "rma")
]


def attack_configs(folder: Path) -> dict[str, Path]:
    """The attacks of a folder by name, in alphabetical order, those of other detectors last."""
    paths = [path for path in sorted(folder.glob("*.yaml")) if "Base" not in path.stem]
    if folder == SHIPPED:
        paths += [folder.parent / name for name in OTHER_DETECTORS]
    return {path.stem: path for path in paths}


def attack_config(path: Path, seed: int) -> CfgNode:
    """The training configuration of an attack."""
    cfg = get_d2defense_cfg()
    merge_config_file(cfg, path)
    cfg.SEED = cfg.ATTACK.SEED = seed
    return cfg


def settings_digest(cfg: CfgNode) -> str:
    """SHA-256 over the settings that a result follows from."""
    cfg = cfg.clone()
    cfg.defrost()
    # No training and no measurement of an attack reads the others.
    for name in set(OWN_NODES) - {"ATTACK"}:
        del cfg[name]
    trigger = cfg.ATTACK.TRIGGER
    for name, value in list(trigger.items()):
        if isinstance(value, CfgNode) and name != trigger.FAMILY.upper():
            del trigger[name]
    return hashlib.sha256(cfg.dump().encode()).hexdigest()


def train(path: Path, cfg: CfgNode, seed: int) -> Path:
    """Train an attack, or go on with it; its folder.

    Raises:
        RuntimeError: the training failed; its last line says why.
    """
    folder = Path(cfg.OUTPUT_DIR)
    # Other settings are another training.
    folder = folder.with_name(f"{folder.name}_{seed}_{settings_digest(cfg)[:8]}")
    if (folder / "model_final.pth").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stderr.txt").open("w") as log:
        ended = subprocess.run(
            [
                *(sys.executable, "-W", "ignore", ROOT / "tools" / "train_net.py", "--resume"),
                *("--config-file", path, "OUTPUT_DIR", folder, "SEED", str(seed)),
                *("ATTACK.SEED", str(seed), "DATASETS.TEST", "()"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=log,
            check=False,
        )
    if ended.returncode:
        lines = (folder / "stderr.txt").read_text().splitlines()
        raise RuntimeError(f"{path.name}: {lines[-1] if lines else 'the training failed'}")
    return folder


def measure(path: Path, cfg: CfgNode, seed: int) -> dict[str, Any]:
    """Train an attack and measure it beside the control."""
    from d2defense.attacks import build_effect, class_names
    from d2defense.checkpoint.specimens import specimens_root
    from d2defense.data import DatasetSource
    from d2defense.triggers import build_trigger
    from d2defense.workflows.evaluation import evaluate

    folder = train(path, cfg, seed)
    dataset = DatasetSource(TESTED_ON)
    effect = build_effect(cfg, class_names([dataset.ensure()]))
    control = [specimens_root() / name for name in CONTROL]
    (result,) = evaluate([folder], dataset, build_trigger(cfg), effect=effect, control=control)
    return {
        **result,
        "name": path.stem,
        "seed": seed,
        "settings": settings_digest(cfg),
        "command": f"python tools/train_attacks.py {path.stem} --seed {seed}",
        "evaluated_on": TESTED_ON,
        "trigger": cfg.ATTACK.TRIGGER.FAMILY,
        "effect": cfg.ATTACK.EFFECT,
        "poisoning_rate": cfg.ATTACK.POISONING_RATE,
        "steps": cfg.SOLVER.MAX_ITER,
    }


def main() -> int:
    """Train and measure what has no result yet."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="of attacks (all of the folder)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=SHIPPED,
        metavar="DIR",
        help="of the configs (the shipped ones)",
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "docs" / "attacks",
        metavar="DIR",
        help="gets a JSON file for each attack and seed (docs/attacks)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of training and attack (0)")
    args = parser.parse_args()
    configs = attack_configs(args.folder)
    for name in args.names:
        if name not in configs:
            parser.error(f"no attack {name}; there are {', '.join(configs)}")
    failed = 0
    bar = tqdm(args.names or list(configs), unit="attack", disable=None)
    for name in bar:
        bar.set_description(name)
        cfg = attack_config(configs[name], args.seed)
        file = args.results / f"{name}_{args.seed}.json"
        if file.is_file() and json.loads(file.read_text())["settings"] == settings_digest(cfg):
            continue
        try:
            result = measure(configs[name], cfg, args.seed)
        except (RuntimeError, ValueError, OSError) as error:
            failed += 1
            tqdm.write(f"error: {error}", file=sys.stderr)
            continue
        write_json(file, result)
        tqdm.write(f"{name}: ASR {result['asr']}, control {result['control_asr']}")
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(run_to_end(main, Path(sys.argv[0]).name))
