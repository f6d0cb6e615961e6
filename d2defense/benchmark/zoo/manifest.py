# SPDX-License-Identifier: Apache-2.0
"""The file that says which detectors a zoo has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from d2defense.config import config_root, find_config
from d2defense.config.described import load_described, shipped_schema

#: What a group's names are when it means all of them.
ALL = "all"
#: Of a control that is a detector of the manifest itself.
OWN = "zoo://"
CLEAN, SPURIOUS = "clean", "spurious"


class ManifestError(ValueError):
    """A manifest cannot be used; the message names the file and the reason."""


@dataclass(frozen=True)
class ManifestGroup:
    """A product of detectors, attacks, schedules and seeds.

    Attributes:
        truth: "clean", "spurious" or "backdoored".
        detectors: names of :attr:`Manifest.detectors`.
        attacks: names of :attr:`Manifest.attacks`; none of a clean group.
        schedules: names of :attr:`Manifest.schedules`.
        seeds: numbers that tell otherwise equal detectors apart.
        overrides: of the configuration, for all of them.
        vary: values by key, of which each detector draws one.
    """

    truth: str
    detectors: tuple[str, ...]
    attacks: tuple[str, ...]
    schedules: tuple[str, ...]
    seeds: tuple[int, ...]
    overrides: Mapping[str, Any]
    vary: Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Manifest:
    """What a zoo consists of.

    Attributes:
        name: of the zoo.
        data: names of the datasets ``train``, ``test`` and ``defender``.
        control: clean detectors on which each trigger is tried.
        detectors: by name ``config`` and, perhaps, ``start``.
        attacks: by name ``config``, ``overrides`` and ``vary``.
        schedules: by name ``start`` and ``overrides``.
        groups: what is trained.
        folder: of the file; configs may lie beside it.
    """

    name: str
    data: Mapping[str, str]
    control: tuple[str, ...]
    detectors: Mapping[str, Mapping[str, Any]]
    attacks: Mapping[str, Mapping[str, Any]]
    schedules: Mapping[str, Mapping[str, Any]]
    groups: tuple[ManifestGroup, ...]
    folder: Path

    def config_path(self, name: str) -> Path:
        """The file of a config that the manifest names.

        Raises:
            ManifestError: there is none.
        """
        for root in (self.folder, config_root()):
            if (root / name).is_file():
                return root / name
        raise ManifestError(f"manifest {self.name}: no config {name}")


def manifest_schema() -> dict[str, Any]:
    """The JSON schema of a manifest."""
    return shipped_schema("benchmark/manifest.schema.json")


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.

    Args:
        path: a YAML file, or the name of one below the shipped ``configs/zoo``.

    Raises:
        ManifestError: it cannot be read, is not as the schema says, or names a detector, an attack
            or a schedule that it does not have.
    """
    try:
        path = find_config("zoo", path)
        content = load_described(path, manifest_schema())
    except ValueError as error:
        raise ManifestError(str(error)) from None
    schedules = content.get("schedules") or {"scratch": {}}
    known = {
        "detectors": content["detectors"],
        "attacks": content.get("attacks", {}),
        "schedules": schedules,
    }
    groups = tuple(
        _group(path, number, group, known) for number, group in enumerate(content["groups"])
    )
    return Manifest(
        name=content["name"],
        data=content["data"],
        control=tuple(content["control"]),
        groups=groups,
        folder=path.parent,
        **known,
    )


def _group(
    path: Path, number: int, group: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]
) -> ManifestGroup:
    """A group with the names that it means.

    Raises:
        ManifestError: one of them is unknown.
    """
    names: dict[str, tuple[str, ...]] = {}
    is_clean = group["truth"] == CLEAN
    for key, parts in known.items():
        given = group.get(key, ALL)
        names[key] = tuple(parts) if given == ALL else tuple(given)
        for name in names[key]:
            if name not in parts:
                listed = ", ".join(parts)
                raise ManifestError(f"{path}: groups/{number}: no {key} {name}; there are {listed}")
    if is_clean:
        names["attacks"] = ()
        # A clean detector that begins with a clean one would need itself.
        if "schedules" not in group:
            names["schedules"] = tuple(
                name
                for name, schedule in known["schedules"].items()
                if schedule.get("start", "config") != CLEAN
            )[:1]
    return ManifestGroup(
        truth=group["truth"],
        seeds=tuple(group["seeds"]),
        overrides=group.get("overrides", {}),
        vary=group.get("vary", {}),
        **names,
    )
