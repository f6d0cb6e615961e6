# SPDX-License-Identifier: Apache-2.0
"""Questions about untrusted files, which may be answered in another process, and the answers.

Who decides what is scanned lists names; what is in the files is asked for here. An answer is plain
data that JSON carries, so that whoever gives it need not be trusted.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from d2defense.text import shorten

from .config import read_config_file
from .errors import CheckpointError
from .file_kinds import KINDS, FileKind, kind_of
from .regular_file import file_sha256, open_regular, reason_of

#: Bytes of ``last_checkpoint``, which holds one name.
MAX_MARKER_BYTES = 4096
_MAX_REASON = 500
_MAX_MEMBERS = 200
_MAX_MEMBER = 200
_SHA256 = re.compile(r"[0-9a-f]{64}")
# A config without weights is worth a word; other programs use the name, too.
_DETECTRON2 = re.compile(rb"^(MODEL|_BASE_)\s*:|^model\s*:[\s\S]{0,10000}?_target_", re.MULTILINE)


class Question(NamedTuple):
    """What is asked about a file."""

    about: str
    """A key of :data:`QUESTIONS`."""
    path: Path


@dataclass(frozen=True)
class ConfigFacts:
    """What a ``config.yaml`` says beside the detector.

    Attributes:
        is_detectron2: whether it is of Detectron2, as far as a glance tells.
        weights: ``MODEL.WEIGHTS``; None if it has none or cannot be read.
    """

    is_detectron2: bool
    weights: str | None


Answer = FileKind | ConfigFacts | str | CheckpointError
#: From questions to their answers, in order.
Inspector = Callable[[Sequence[Question]], list[Answer]]


def _config_facts(path: Path) -> dict[str, Any]:
    with open_regular(path) as stream:
        start = stream.read(1 << 16)
    is_detectron2 = not start.strip() or _DETECTRON2.search(start) is not None
    weights = None
    if is_detectron2:
        try:
            model = read_config_file(path).content.get("MODEL")
            weights = model.get("WEIGHTS", model.get("WEIGHT")) if isinstance(model, dict) else None
        except CheckpointError:  # whoever opens it to build a model says what is wrong
            pass
    return {"is_detectron2": is_detectron2, "weights": weights if type(weights) is str else None}


def _marker(path: Path) -> dict[str, Any]:
    with open_regular(path) as stream:
        content = stream.read(MAX_MARKER_BYTES + 1)
    if len(content) > MAX_MARKER_BYTES:
        raise CheckpointError(path, f"larger than {MAX_MARKER_BYTES} bytes")
    return {"text": content.decode("utf-8", errors="replace").strip()}


def _kind(path: Path) -> dict[str, Any]:
    found = kind_of(path)
    return {
        "kind": found.kind,
        "reason": found.reason,
        "members": list(found.members),
        "sample": found.sample,
    }


def _digest(path: Path) -> dict[str, Any]:
    return {"sha256": file_sha256(path)}


def _document(path: Path) -> dict[str, Any]:
    document = read_config_file(path)
    if len(document.files) == 1:
        return {"sha256": ""}
    text = json.dumps(document.content, sort_keys=True, default=repr)
    return {"sha256": hashlib.sha256(text.encode("utf-8")).hexdigest()}


#: What can be asked: the kind of a file; what a config says beside the detector; what
#: ``last_checkpoint`` says; the SHA-256 of a file; that of a config with what it builds upon, empty
#: if it stands alone.
QUESTIONS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "kind": _kind,
    "config": _config_facts,
    "marker": _marker,
    "digest": _digest,
    "document": _document,
}


def answer(question: Question) -> dict[str, Any]:
    """The answer as plain data; ``{"error": reason}`` if the file cannot be used."""
    try:
        return QUESTIONS[question.about](question.path)
    except CheckpointError as error:
        return {"error": error.reason}
    except MemoryError:
        return {"error": "needs more memory than there is to be looked at"}
    except Exception as error:  # a file can be wrong in any way; the others must be looked at
        return {"error": f"cannot be looked at: {type(error).__name__}: {reason_of(error)}"}


def parse(question: Question, data: object) -> Answer:
    """What an answer says, which may come from anybody.

    Raises:
        ValueError: it is no answer to this question.
    """
    if not isinstance(data, dict):
        raise ValueError("no answer")
    if "error" in data:
        return CheckpointError(question.path, shorten(data["error"], _MAX_REASON))
    if question.about == "kind":
        kind, sample, members = data.get("kind"), data.get("sample"), data.get("members")
        if kind not in KINDS or not isinstance(members, list) or len(members) > _MAX_MEMBERS:
            raise ValueError("no kind of file")
        if not all(m is None or (type(m) is str and len(m) <= _MAX_MEMBER) for m in members):
            raise ValueError("no sets of weights")
        if len(set(members)) != len(members) or type(sample) is not str:
            raise ValueError("no sets of weights")
        return FileKind(
            kind, shorten(data.get("reason", ""), _MAX_REASON), tuple(members), sample[:64]
        )
    if question.about == "config":
        weights = data.get("weights")
        if weights is not None and type(weights) is not str:
            raise ValueError("no name of weights")
        return ConfigFacts(data.get("is_detectron2") is True, weights)
    key = "text" if question.about == "marker" else "sha256"
    text = data.get(key)
    if type(text) is not str or len(text) > MAX_MARKER_BYTES:
        raise ValueError(f"no {key}")
    if key == "sha256" and not _SHA256.fullmatch(text) and (text or question.about == "digest"):
        raise ValueError("no SHA-256")
    return text


def inspect_here(questions: Sequence[Question]) -> list[Answer]:
    """Answer in this process, unprotected but for the limits of the readers."""
    return [parse(question, answer(question)) for question in questions]
