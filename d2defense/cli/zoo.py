# SPDX-License-Identifier: Apache-2.0
"""Train, check and give away a zoo of clean and backdoored detectors.

    d2defense zoo plan tiny
    d2defense zoo build tiny --output runs/zoo/tiny --workers 2
    d2defense zoo verify runs/zoo/tiny --measure
    d2defense zoo export runs/zoo/tiny --output tiny.tar.gz

A manifest says which detectors there are: a YAML file, or "tiny", "one_stage", "scene_ghost",
"bccd", "small" or "coco".
`build` trains those that are missing and measures each; a build that was killed goes on where it
was when the same command is given again. `export` writes an archive in which a third has no labels,
and the labels beside it.

Exit codes: 0 done; 2 a training failed, a detector is not as its metadata says, or wrong usage; 130
interrupted.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

NAME = "zoo"
HELP = "train, check and give away a zoo of clean and backdoored detectors"

_FAILED = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument(
        "action", choices=("plan", "build", "verify", "export"), help="what to do with a zoo"
    )
    parser.add_argument(
        "source", metavar="MANIFEST|ZOO", help="a manifest to plan or build, else a zoo's folder"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="folder that build trains into; .tar.gz file that export writes",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="of export: gets what the archive withholds (beside it, .labels.json)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="trainings at a time, each of one thread (%(default)s)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="PATTERN",
        help="detectors whose name matches it, as in a shell",
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="the first N of them; any beginning is balanced"
    )
    parser.add_argument(
        "--num-gpus", type=int, default=0, metavar="N", help="that a training uses (%(default)s)"
    )
    parser.add_argument(
        "--ray-address",
        metavar="ADDRESS",
        help="of a Ray cluster that trains; its machines share the output folder",
    )
    parser.add_argument(
        "--measure", action="store_true", help="of verify: measure every detector again, too"
    )
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    """Do what the action says."""
    from d2defense.benchmark.zoo.index import ZooError
    from d2defense.benchmark.zoo.manifest import ManifestError
    from d2defense.workflows.scan.options import UsageError

    if args.output is None and args.action in ("build", "export"):
        args.parser.error(f"{args.action} needs --output")
    if args.workers < 1 or (args.limit is not None and args.limit < 1):
        args.parser.error("--workers and --limit must be at least 1")
    try:
        return {"plan": _plan, "build": _build, "verify": _verify, "export": _export}[args.action](
            args
        )
    except (ManifestError, UsageError, ZooError) as error:
        args.parser.error(str(error))


def _plan(args: argparse.Namespace) -> int:
    from d2defense.benchmark.zoo.entries import expand, matching
    from d2defense.benchmark.zoo.manifest import load_manifest

    entries = expand(load_manifest(Path(args.source)))
    chosen = matching(entries, args.only, args.limit)
    for entry in chosen:
        drawn = ", ".join(f"{key} {value}" for key, value in entry.drawn.items())
        mark = "sequestered" if entry.is_sequestered else ""
        print("  ".join(filter(None, (entry.name, mark, drawn))))
    counts = Counter(entry.truth for entry in chosen)
    print(", ".join(f"{number} {truth}" for truth, number in counts.items()) or "no detectors")
    return 0


def _build(args: argparse.Namespace) -> int:
    from d2defense.benchmark.zoo.build import build_zoo
    from d2defense.benchmark.zoo.manifest import load_manifest

    built = build_zoo(
        load_manifest(Path(args.source)),
        args.output,
        args.workers,
        args.only,
        args.limit,
        args.num_gpus,
        args.ray_address,
    )
    print(f"{built.there} of {built.detectors} detectors are in {args.output}")
    return _FAILED if built.failed else 0


def _verify(args: argparse.Namespace) -> int:
    from d2defense.benchmark.zoo.check import check_zoo

    wrong = check_zoo(Path(args.source), args.measure, lambda name: print(f"ok: {name}"))
    for line in wrong:
        print(f"wrong: {line}")
    return _FAILED if wrong else 0


def _export(args: argparse.Namespace) -> int:
    from d2defense.benchmark.zoo.export import export_zoo

    stem = args.output.name.removesuffix(".gz").removesuffix(".tar")
    labels = args.labels or args.output.with_name(f"{stem}.labels.json")
    known, withheld = export_zoo(Path(args.source), args.output, labels)
    print(f"{known + withheld} detectors in {args.output}; the labels of {withheld} in {labels}")
    return 0
