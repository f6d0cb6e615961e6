# SPDX-License-Identifier: Apache-2.0
"""The HTML reports: self-contained pages that load nothing from the network.

Every string that comes from outside (names, paths, errors) passes jinja2's escaping, and a page
forbids, by its content security policy, any script or style but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import d2defense
from d2defense import files, text

from .results import MAX_PNG_BYTES

#: Name of a report in its folder.
REPORT_FILE = "report.html"
_PNG_HEADER = struct.Struct(">8s4x4sII")


@dataclass(frozen=True)
class PagePicture:
    """A PNG as the page embeds it: data URI, size in CSS pixels, words."""

    uri: str
    width: int
    height: int
    caption: str
    alt: str


def write_page(
    path: str | os.PathLike[str], template: str, script: str = "", **context: Any
) -> Path:
    """Write a self-contained page.

    Args:
        path: file to write.
        template: its name. It is given ``version``, ``written``, ``style`` and ``script``, with the
            hashes that its content security policy allows.
        script: name of a script, which runs after that of the reports; "" for none.
        context: what else the template is given.
    """
    page = _environment().get_template(template).render(**_frame(script), **context)
    return files.write_text(path, page)


def data_uri(png: bytes) -> str:
    """The address of a PNG file that is in the page itself."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def picture_of(content: bytes, caption: str, alt: str) -> PagePicture | None:
    """A PNG for the page, None if the bytes are none; drawn at half its dots for dense screens."""
    if len(content) < _PNG_HEADER.size or len(content) > MAX_PNG_BYTES:
        return None
    signature, chunk, width, height = _PNG_HEADER.unpack_from(content)
    if signature != b"\x89PNG\r\n\x1a\n" or chunk != b"IHDR":
        return None
    return PagePicture(data_uri(content), max(1, width // 2), max(1, height // 2), caption, alt)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("d2defense", "assets/report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(
        printable=text.printable,
        number=text.number,
        interval=text.interval,
        probability=text.probability,
        certain=_excludes_zero,
        embedded=_embedded,
    )
    return environment


def _asset(name: str) -> Markup:
    folder = resources.files("d2defense") / "assets" / "report"
    return Markup((folder / name).read_text(encoding="utf-8"))


def _embedded(content: Any) -> Markup:
    """JSON inside of a script element, which nothing in it can end."""
    return Markup(json.dumps(content, allow_nan=False).replace("<", "\\u003c"))


def _policy_hash(content: str) -> str:
    digest = hashlib.sha256(content.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _frame(script: str) -> dict[str, Any]:
    """What every page is given."""
    style, scripts = _asset("style.css"), _asset("report.js")
    if script:
        scripts += _asset(script)
    return {
        "version": d2defense.__version__,
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "style": style,
        "style_hash": _policy_hash(style),
        "script": scripts,
        "script_hash": _policy_hash(scripts),
    }


def _excludes_zero(statistic: Mapping[str, Any]) -> bool:
    bounds = statistic.get("interval")
    return bounds is not None and (bounds[0] > 0 or bounds[1] < 0)
