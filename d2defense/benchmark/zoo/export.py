# SPDX-License-Identifier: Apache-2.0
"""A zoo to give away: an archive in which a third of the detectors has no labels."""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import tarfile
from pathlib import Path
from typing import Any

from d2defense.files import open_whole, write_json

from .index import (
    DETECTORS,
    FACTS,
    INDEX_NAME,
    METADATA_NAME,
    SCHEMA_VERSION,
    ZooDetector,
    ZooError,
    count,
    facts_of,
    file_of,
    find_detectors,
    read_json,
)

# What a sequestered detector's metadata keeps: what anyone can see of its files.
_OPEN = ("weights", "config")


def export_zoo(zoo: Path, archive: Path, labels: Path) -> tuple[int, int]:
    """Write the detectors of a zoo as a ``.tar.gz``, and the labels of a third beside it.

    Sequestered detectors are called by a number drawn anew at each export, and nothing but their
    weights, their architecture and the size of their images is said of them. Whoever trains the
    zoo of a published manifest can recognise them, so a manifest meant for a contest stays secret.

    Args:
        zoo: its folder.
        archive: file to write.
        labels: file to write: by the name in the archive the facts of each sequestered detector.

    Returns:
        How many detectors are open, and how many are sequestered.

    Raises:
        ZooError: there is no zoo, or one without metadata or with metadata that names no files.
    """
    salt = secrets.token_bytes(16)
    detectors, withheld, members = [], {}, {}
    for detector in find_detectors(zoo):
        metadata = read_json(detector.folder / METADATA_NAME)
        facts = facts_of(metadata)
        name = detector.name
        if facts["sequestered"]:
            name = f"sequestered_{hashlib.sha256(salt + name.encode()).hexdigest()[:10]}"
            withheld[name] = metadata
            facts = dict.fromkeys(FACTS) | {"zoo": facts["zoo"], "sequestered": True}
            facts["detector"] = metadata.get("detector")
            metadata = {key: metadata.get(key) for key in _OPEN}
        metadata = metadata | facts | {"name": name}
        folder = f"{DETECTORS}/{name}"
        _, sha256 = file_of(detector.folder, metadata, "weights")
        detectors.append(facts | {"name": name, "folder": folder, "sha256": sha256})
        members |= _members(detector, folder, metadata)
    detectors.sort(key=lambda each: each["name"])
    index = {"schema_version": SCHEMA_VERSION, "counts": count(detectors), "detectors": detectors}
    members[INDEX_NAME] = _json(index)
    with (
        open_whole(archive) as stream,
        tarfile.open(fileobj=stream, mode="w:gz", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(members):
            # Neither owner nor time: they would tell which were made together.
            member = tarfile.TarInfo(path)
            member.size = len(members[path])
            tar.addfile(member, io.BytesIO(members[path]))
    write_json(labels, {"archive": archive.name, "detectors": withheld})
    return len(detectors) - len(withheld), len(withheld)


def read_labels(path: Path) -> dict[str, dict[str, Any]]:
    """The facts of sequestered detectors by their name in the archive, from a file of labels.

    Raises:
        ZooError: it is none.
    """
    content = read_json(path).get("detectors")
    if not isinstance(content, dict):
        raise ZooError(f"{path}: is no file of labels")
    return {
        name: {key: value for key, value in facts_of(metadata).items() if key != "name"}
        for name, metadata in content.items()
    }


def _members(detector: ZooDetector, folder: str, metadata: dict[str, Any]) -> dict[str, bytes]:
    """The files of a detector by their path in the archive."""
    files = [file_of(detector.folder, metadata, part)[0] for part in _OPEN]
    contents = {f"{folder}/{file.name}": file.read_bytes() for file in files}
    return contents | {f"{folder}/{METADATA_NAME}": _json(metadata)}


def _json(content: Any) -> bytes:
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()
