# SPDX-License-Identifier: Apache-2.0
"""The configuration of a checkpoint that is made from another."""

from __future__ import annotations

from pathlib import Path

import yaml

from d2defense.checkpoint.config import read_config_file
from d2defense.files import write_bytes


def publish_config(config: Path, path: Path, trusted: bool = False) -> None:
    """Write the original's config: byte by byte, or as one file if it builds on others.

    A LazyConfig of the model zoo is written as YAML.

    Args:
        config: of the original.
        path: where to.
        trusted: whether the user vouches for it (:func:`read_config_file`).

    Raises:
        CheckpointError: it builds on files that cannot be read.
    """
    content = config.read_bytes()
    if b"_BASE_" in content or config.suffix == ".py":
        content = yaml.safe_dump(read_config_file(config, trusted).content).encode("utf-8")
    write_bytes(path, content)
