# SPDX-License-Identifier: Apache-2.0
"""What a scan would scan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from d2defense.checkpoint import Discovery, NoCheckpointError, discover
from d2defense.checkpoint.output_folder import CONFIG_NAME

from .inspector import check_protections, make_inspector
from .options import RunOptions, UsageError


def find_sources(
    paths: Iterable[str | Path],
    config_file: Path | None = None,
    model_zoo: str | None = None,
    only_final: bool = False,
    options: RunOptions | None = None,
) -> Discovery:
    """What paths stand for, as :func:`d2defense.checkpoint.discovery` finds it.

    Args:
        paths: checkpoints or folders of them.
        config_file: of checkpoints that have none.
        model_zoo: name of a config of Detectron2's model zoo for them.
        only_final: scan of each output folder the final weights alone.
        options: of the scan, which say in what process the files are looked at; the defaults if
            None.

    Returns:
        Sources, and paths that hold none with an error; no source at all if every path is a folder
        without checkpoints.

    Raises:
        UsageError: the config cannot be found; a protection that is required is missing here.
    """
    if config_file is not None and not Path(config_file).is_file():
        raise UsageError(f"{config_file}: no such config file")
    paths = [Path(path) for path in paths]
    options = options or RunOptions()
    check_protections(options)
    inspector = make_inspector(options, _readable(paths))
    try:
        found = discover(paths, config_file, model_zoo, only_final, inspector)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if all(isinstance(source.error, NoCheckpointError) for source in found.sources):
        return Discovery([], found.left_out)
    return found


def _readable(paths: list[Path]) -> Iterator[Path]:
    """What has to be read to find out what paths stand for."""
    for path in paths:
        if os.path.exists(path):
            yield path
        # A config beside a file may build upon others of the folder.
        if os.path.isfile(path) and os.path.exists(path.parent / CONFIG_NAME):
            yield path.parent
