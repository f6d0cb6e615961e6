# SPDX-License-Identifier: Apache-2.0
"""What a scan would scan."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from d2defense.checkpoint import Discovery, NoCheckpointError, discover

from .options import UsageError


def find_sources(
    paths: Iterable[str | Path],
    config_file: Path | None = None,
    model_zoo: str | None = None,
    only_final: bool = False,
) -> Discovery:
    """What paths stand for, as :func:`d2defense.checkpoint.discover` finds it.

    Args:
        paths: checkpoints or folders of them.
        config_file: of checkpoints that have none.
        model_zoo: name of a config of Detectron2's model zoo for them.
        only_final: scan of each output folder the final weights alone.

    Returns:
        Sources, and paths that hold none with an error; no source at all if every path is a folder
        without checkpoints.

    Raises:
        UsageError: the config cannot be found.
    """
    if config_file is not None and not Path(config_file).is_file():
        raise UsageError(f"{config_file}: no such config file")
    try:
        found = discover(paths, config_file, model_zoo, only_final)
    except ValueError as error:
        raise UsageError(str(error)) from None
    if all(isinstance(source.error, NoCheckpointError) for source in found.sources):
        return Discovery([], found.left_out)
    return found
