# SPDX-License-Identifier: Apache-2.0
"""The trigger that a search has found, as a bank that other commands take."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from d2defense.detection.bank_format import BankChecker
from d2defense.files import write_text
from d2defense.report.results import TRIGGER_BANK_FILE, TRIGGER_FILE

logger = logging.getLogger(__name__)

# Keys of an entry that name a file.
_FILE_KEYS = ("file", "image")


def write_found_trigger(
    folder: Path, result: Mapping[str, Any], figures: Mapping[str, bytes]
) -> None:
    """Write ``trigger.yaml`` beside ``trigger.png``, where a result has a found trigger.

    The entry comes from the process that ran the checkpoint, so it is checked: it must be one of a
    bank, and name no other file.

    Args:
        folder: of the checkpoint in the output.
        result: a valid one.
        figures: PNG files by name, as they are written.
    """
    entry = (result.get("search") or {}).get("trigger")
    if entry is None or TRIGGER_FILE not in figures:
        return
    try:
        checker = BankChecker()
        checker.check_file({"triggers": [entry]})
        checker.check_trigger(dict(entry))
        if any(entry.get(key, TRIGGER_FILE) != TRIGGER_FILE for key in _FILE_KEYS):
            raise ValueError(f"it names another file than {TRIGGER_FILE}")
    except ValueError as error:
        logger.warning("%s: the found trigger is left out: %s", result["name"], error)
        return
    write_text(folder / TRIGGER_BANK_FILE, yaml.safe_dump({"triggers": [entry]}, sort_keys=False))
