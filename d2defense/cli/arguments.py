# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from d2defense.data.source import DatasetSource
    from d2defense.registry import Registry


def add_dataset_arguments(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """A registered dataset, or a COCO-format one given on the spot."""
    group = parser.add_argument_group("clean labelled images")
    shown = f" ({default})" if default else ""
    group.add_argument(
        "--dataset", default=default, metavar="NAME", help=f"registered dataset{shown}"
    )
    group.add_argument("--dataset-json", metavar="FILE", help="COCO annotations of your own data")
    group.add_argument("--image-root", metavar="DIR", help="folder of its images")


def add_part_group(
    parser: argparse.ArgumentParser, registry: Registry, title: str
) -> argparse._ArgumentGroup:
    """A group of options about registered parts, with the line of help that each part has."""
    silence_developer_notices()  # of what the parts import
    choices = registry.choices()
    width = max(map(len, choices))
    lines = [f"{name:{width}}  {line}" for name, line in choices.items()]
    return parser.add_argument_group(title, "\n".join(lines))


def add_skip_argument(parser: argparse.ArgumentParser) -> None:
    """Whether a measurement or a training goes on without images that cannot be read."""
    parser.add_argument(
        "--skip-unusable",
        action="store_true",
        help="leave images of your own data out that cannot be read or have another size than the"
        " annotations say, instead of ending",
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Device and overrides of the defense's settings."""
    parser.add_argument("--device", metavar="DEVICE", help="cpu or cuda (default: as configured)")
    add_overrides_argument(parser)


def add_attack_argument(parser: argparse.ArgumentParser) -> None:
    """Which attack, for :func:`defense_config`."""
    parser.add_argument(
        "--attack",
        type=Path,
        metavar="FILE",
        help="take ATTACK from a training config; --opts still override it",
    )


def add_overrides_argument(parser: argparse.ArgumentParser) -> None:
    """Overrides of the defense's settings."""
    parser.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="overrides of d2defense's settings, such as DEFENSE.MAX_IMAGES 50",
    )


def add_confinement_arguments(group: argparse._ArgumentGroup) -> None:
    """Where a checkpoint is opened, and how much memory that may take."""
    group.add_argument(
        "--isolation",
        choices=("process", "none"),
        default="process",
        help="open each checkpoint in a confined process, or here (%(default)s)",
    )
    group.add_argument(
        "--memory-limit",
        default="8G",
        metavar="SIZE",
        help="of one checkpoint's process; 0 for none (%(default)s)",
    )


def dataset_source(args: argparse.Namespace, parser: argparse.ArgumentParser) -> DatasetSource:
    """The dataset that the options name; contradictions end the program with a usage error."""
    from d2defense.data.source import DatasetSource

    if bool(args.dataset_json) != bool(args.image_root):
        parser.error("--dataset-json and --image-root go together")
    if args.dataset_json:
        skip = getattr(args, "skip_unusable", False)
        return DatasetSource(args.dataset_json, args.dataset_json, args.image_root, skip)
    if not args.dataset:
        parser.error("no dataset: give --dataset NAME, or --dataset-json and --image-root")
    return DatasetSource(args.dataset)


def configure_logging(quiet: bool = False) -> None:
    """Messages of d2defense on standard error, one line each; only problems if ``quiet``."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logger = logging.getLogger("d2defense")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.WARNING if quiet else logging.INFO)


def silence_developer_notices() -> None:
    """Hide notices of Detectron2 and torch to their own developers, which users cannot act on."""
    import torch  # noqa: F401 puts filters of its own in front when it is first imported

    warnings.filterwarnings("ignore", message="torch.meshgrid", category=UserWarning)
    warnings.filterwarnings("ignore", message=".*pkg_resources", category=UserWarning)
    warnings.filterwarnings("ignore", message=".*torch.jit.script", category=FutureWarning)
    logging.getLogger("torch.fx").setLevel(logging.ERROR)


def defense_config(
    args: argparse.Namespace, parser: argparse.ArgumentParser, attack: Path | None = None
) -> CfgNode:
    """d2defense's settings with the overrides of ``--opts``; bad ones are a usage error.

    Args:
        args: the command's.
        parser: says what is wrong.
        attack: a training config that ``ATTACK`` is taken from.
    """
    from d2defense.config import get_d2defense_cfg, merge_config_file, merge_overrides
    from d2defense.config.documents import ConfigFileError

    cfg = get_d2defense_cfg()
    if attack is not None:
        trained = cfg.clone()
        try:
            merge_config_file(trained, attack)
        except ConfigFileError as error:
            parser.error(f"--attack: {error}")
        except (AssertionError, KeyError, ValueError) as error:
            parser.error(f"--attack: {attack}: {error.args[0] if error.args else error}")
        cfg.ATTACK = trained.ATTACK
    try:
        merge_overrides(cfg, args.opts)
    except ValueError as error:
        parser.error(f"--opts: {error}")
    return cfg
