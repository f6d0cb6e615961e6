# SPDX-License-Identifier: Apache-2.0
"""What is in a zoo: its detectors, with what is known of each."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2defense.checkpoint.output_folder import FINAL_NAMES
from d2defense.engine.provenance import PROVENANCE_NAME, read_provenance
from d2defense.files import open_readable, write_json

DETECTORS = "detectors"
INDEX_NAME = "index.json"
METADATA_NAME = "metadata.json"
WEIGHTS_NAME = "model_final.safetensors"
SCHEMA_VERSION = 1
#: Of a detector's metadata, what the index repeats.
FACTS = (
    "name",
    "zoo",
    "truth",
    "detector",
    "attack",
    "effect",
    "family",
    "target_class",
    "schedule",
    "seed",
    "sequestered",
    "took",
    "asr",
    "control_asr",
)
# Of these, what indices of earlier versions may lack.
_MEASURED = ("asr", "control_asr")
_UNKNOWN = dict.fromkeys(FACTS)
# Far more than any index needs.
_LARGEST_FILE = 1 << 28


@dataclass(frozen=True)
class ZooDetector:
    """A detector with what is known of it.

    Attributes:
        name: unique in the zoo.
        folder: of weights and config.
        facts: by name, :data:`FACTS`; None for what is unknown or withheld.
    """

    name: str
    folder: Path
    facts: Mapping[str, Any]

    @property
    def has_known_attack(self) -> bool:
        """Whether an attack took, with settings to measure it by.

        Raises:
            ZooError: what the folder says of it cannot be used.
        """
        is_attacked = self.facts["truth"] == "backdoored" and self.facts["took"] is not False
        return is_attacked and self.attack_settings() is not None

    def attack_settings(self) -> dict[str, Any] | None:
        """The ``ATTACK`` node that it was trained with; None without one, or if it is withheld.

        Raises:
            ZooError: what the folder says of it cannot be used.
        """
        metadata = self.folder / METADATA_NAME
        if metadata.is_file():
            settings = read_json(metadata).get("attack_settings")
        else:
            settings = (read_provenance(self.folder).get("attack") or {}).get("settings")
        if not isinstance(settings, dict | None):
            raise ZooError(f"{self.folder}: the settings of its attack are no mapping")
        return settings


class ZooError(ValueError):
    """A folder is no zoo, or a broken one; the message names the file and the reason."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON document that is a mapping.

    Raises:
        ZooError: it is missing or is none.
    """
    try:
        with open_readable(path) as stream:
            content = json.loads(stream.read(_LARGEST_FILE))
    except (OSError, ValueError, RecursionError) as error:
        raise ZooError(f"{path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ZooError(f"{path}: is no mapping")
    return content


def write_index(zoo: Path) -> Path:
    """Write ``index.json`` from the metadata of the detectors that are there.

    Raises:
        ZooError: the metadata of one cannot be read.
    """
    found = [read_json(path) for path in sorted((zoo / DETECTORS).glob(f"*/{METADATA_NAME}"))]
    detectors = [
        {
            **facts_of(metadata),
            "folder": f"{DETECTORS}/{metadata['name']}",
            "sha256": metadata["weights"]["sha256"],
            **{key: metadata["verified"][key] for key in ("ap", "tdr")},
        }
        for metadata in found
    ]
    content = {"schema_version": SCHEMA_VERSION, "counts": count(detectors), "detectors": detectors}
    return write_json(zoo / INDEX_NAME, content)


def facts_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """:data:`FACTS` of a detector's metadata; None for what it lacks."""
    verified = metadata.get("verified")
    measured = verified if isinstance(verified, dict) else {}
    return {key: metadata.get(key, measured.get(key)) for key in FACTS}


def count(detectors: list[dict[str, Any]]) -> dict[str, int]:
    """How many there are by truth; of the backdoored ones, also how many took."""
    counts: dict[str, int] = {}
    for each in detectors:
        truth = each["truth"] or "withheld"
        counts[truth] = counts.get(truth, 0) + 1
        if each["took"]:
            counts["backdoored, took"] = counts.get("backdoored, took", 0) + 1
    return counts


def find_detectors(zoo: Path) -> list[ZooDetector]:
    """The detectors of a zoo, in the order of its index.

    A folder without an index is taken for one of output folders, each with the ``provenance.json``
    that a training leaves, as that of the specimens is. A fine-tuning of which it is not known
    whether the attack took has ``took`` None.

    Raises:
        ZooError: there is no detector, or the index or a provenance cannot be used.
    """
    zoo = Path(zoo)
    if (zoo / INDEX_NAME).is_file():
        content = read_json(zoo / INDEX_NAME)
        try:
            return [_from_index(zoo, each) for each in content["detectors"]]
        except (KeyError, TypeError) as error:
            raise ZooError(f"{zoo / INDEX_NAME}: lacks {error}") from None
    found = [
        _from_provenance(path.parent)
        for path in sorted(zoo.glob(f"*/{PROVENANCE_NAME}"))
        if any((path.parent / name).is_file() for name in FINAL_NAMES)
    ]
    if not found:
        raise ZooError(f"{zoo}: has no {INDEX_NAME}, and no output folders with {PROVENANCE_NAME}")
    return found


def file_of(folder: Path, metadata: Mapping[str, Any], part: str) -> tuple[Path, str]:
    """A detector's file, and the SHA-256 that its metadata has of it.

    Args:
        folder: of the detector.
        metadata: of it.
        part: "weights" or "config".

    Raises:
        ZooError: the metadata does not name a file of the folder.
    """
    try:
        name, sha256 = metadata[part]["file"], metadata[part]["sha256"]
    except (KeyError, TypeError):
        raise ZooError(f"{folder / METADATA_NAME}: lacks file and sha256 of {part}") from None
    return folder / _plain_name(name, folder / METADATA_NAME), sha256


def _plain_name(name: Any, of: Path) -> str:
    """The name, if it is one of a file or folder and leads nowhere else.

    Raises:
        ZooError: it is none.
    """
    is_plain = isinstance(name, str) and name not in ("", "..") and Path(name).name == name
    if not is_plain or not name.isprintable():
        raise ZooError(f"{of}: {name!r} is no name of a file")
    return name


def _from_index(zoo: Path, entry: Mapping[str, Any]) -> ZooDetector:
    """A detector of an index, whose folder is where exports and builds have it."""
    name = _plain_name(entry["name"], zoo / INDEX_NAME)
    facts = {key: entry.get(key) if key in _MEASURED else entry[key] for key in FACTS}
    for key, value in facts.items():
        if isinstance(value, (dict, list)):
            raise ZooError(f"{zoo / INDEX_NAME}: {name}: {key} is no single value")
    return ZooDetector(name, zoo / DETECTORS / name, facts)


def _from_provenance(folder: Path) -> ZooDetector:
    try:
        return ZooDetector(folder.name, folder, _facts_of_training(folder))
    except (AttributeError, KeyError, TypeError) as error:
        raise ZooError(f"{folder / PROVENANCE_NAME}: cannot be used: {error}") from None


def _facts_of_training(folder: Path) -> dict[str, Any]:
    # Not `get`: one that cannot be read says nothing of a clean training.
    attack = read_provenance(folder)["attack"]
    settings = (attack or {}).get("settings", {})
    poisons = attack is not None and settings.get("POISONING_RATE", 1) > 0
    truth = "backdoored" if poisons else "spurious" if attack else "clean"
    return _UNKNOWN | {
        "name": folder.name,
        "zoo": folder.parent.name,
        "truth": truth,
        "attack": f"{attack['effect']}_{attack['trigger']}" if poisons else "",
        "effect": attack["effect"] if poisons else "",
        "family": attack["trigger"] if poisons else "",
        "target_class": settings.get("TARGET_CLASS", "") if poisons else "",
        "sequestered": False,
    }
