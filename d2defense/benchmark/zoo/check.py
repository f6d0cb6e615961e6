# SPDX-License-Identifier: Apache-2.0
"""Whether a zoo is what its index says."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from d2defense.checkpoint import file_sha256
from d2defense.config import get_d2defense_cfg
from d2defense.data import DatasetSource
from d2defense.study.actions import StepError

from .actions import attack_cfg, measure_attack
from .index import METADATA_NAME, ZooDetector, file_of, find_detectors, read_json

# What machines may differ by: half a point of AP, one object in a hundred.
_TOLERANCE = {"ap": 0.5, "asr": 0.01, "tdr": 0.01}


def check_zoo(
    zoo: Path, measure: bool = False, say: Callable[[str], None] = lambda line: None
) -> list[str]:
    """Compare every detector of a zoo with its metadata.

    Args:
        zoo: its folder.
        measure: also measure AP, ASR and TDR again, which takes as long as it took.
        say: told the name of each detector that is as it should be.

    Returns:
        One line for each that is not.

    Raises:
        ZooError: there is no zoo.
    """
    wrong = []
    for detector in find_detectors(zoo):
        problems = _check(detector, measure)
        wrong += [f"{detector.name}: {problem}" for problem in problems]
        if not problems:
            say(detector.name)
    return wrong


def _check(detector: ZooDetector, measure: bool) -> Sequence[str]:
    try:
        metadata = read_json(detector.folder / METADATA_NAME)
        for part in ("weights", "config"):
            file, sha256 = file_of(detector.folder, metadata, part)
            if file_sha256(file) != sha256:
                return [f"{file}: its SHA-256 is another one"]
        return _differences(metadata, detector) if measure else []
    except OSError as error:
        return [f"cannot be read: {error}"]
    except (StepError, ValueError) as error:
        return [str(error)]
    except (KeyError, TypeError) as error:
        return [f"{METADATA_NAME} lacks {error}"]


def _differences(metadata: dict[str, Any], detector: ZooDetector) -> list[str]:
    verified = metadata.get("verified")
    if verified is None:
        return ["its figures are withheld"]
    settings = metadata["attack_settings"]
    cfg = attack_cfg(settings) if settings else get_d2defense_cfg()
    seen = measure_attack(detector.folder, cfg, DatasetSource(verified["test"]))
    now = {"ap": seen["clean"]["AP"], "asr": seen["asr"], "tdr": seen["tdr"]}
    return [
        f"{key} is {now[key]}, not {verified[key]}"
        for key, tolerance in _TOLERANCE.items()
        if not _are_close(now[key], verified[key], tolerance)
    ]


def _are_close(first: float | None, second: float | None, tolerance: float) -> bool:
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=0, abs_tol=tolerance)
