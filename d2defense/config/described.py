# SPDX-License-Identifier: Apache-2.0
"""YAML files that the user wrote or chose, and of which a JSON schema says what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from d2defense.files import open_readable
from d2defense.text import shorten

# Far more than any of them needs.
_LARGEST_FILE = 1 << 20
_WIDTH = 300


@cache
def shipped_schema(name: str) -> dict[str, Any]:
    """A JSON schema (draft 2020-12) that comes along, by its path below ``assets``."""
    file = resources.files("d2defense") / "assets" / name
    return json.loads(file.read_text(encoding="utf-8"))


def load_described(path: Path, schema: Mapping[str, Any]) -> Any:
    """Read a file that fits a schema.

    Raises:
        ValueError: it cannot be read or does not fit; one line, which names the file and the place.
    """
    try:
        with open_readable(path) as stream:
            text = stream.read(_LARGEST_FILE + 1)
        if len(text) > _LARGEST_FILE:
            raise ValueError(f"larger than {_LARGEST_FILE} bytes")
        content = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    validator = jsonschema.Draft202012Validator(schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(content))
    if error is not None:
        where = "/".join(map(str, error.absolute_path)) or "the file"
        raise ValueError(f"{path}: {shorten(f'{where}: {error.message}', _WIDTH)}")
    return content
