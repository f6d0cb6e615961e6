# SPDX-License-Identifier: Apache-2.0
"""Standard output that holds one JSON document and nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from d2defense.files import write_json

STDOUT = "-"


@contextmanager
def json_output(destination: str | None) -> Iterator[TextIO]:
    """The stream that JSON goes to; if that is standard output, all else there is diverted.

    Within the block, what Python code and C libraries write to standard output then appears on
    standard error.

    Args:
        destination: file name, :data:`STDOUT`, or None for no JSON.
    """
    if destination != STDOUT:
        yield sys.stdout
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with (
            os.fdopen(os.dup(saved), "w", encoding="utf-8") as stream,
            redirect_stdout(sys.stderr),
        ):
            yield stream
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def print_json(content: Any, destination: str, stream: TextIO) -> None:
    """Write a JSON document to a file, whole or not at all, or to ``stream`` for standard output.

    Raises:
        OSError: the file cannot be written.
    """
    if destination == STDOUT:
        stream.write(json.dumps(content, indent=2, allow_nan=False) + "\n")
    else:
        write_json(Path(destination), content)
