# SPDX-License-Identifier: Apache-2.0
"""The sizes that a study comes in: which detectors, data and schedules, read from a file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from d2defense.config import config_root, find_config, get_d2defense_cfg, merge_overrides
from d2defense.config.described import load_described, shipped_schema
from d2defense.registry import EXPERIMENT_REGISTRY
from d2defense.text import shorten

Pairs = tuple[Any, ...]
# {"name": ...} of a registered dataset, {"json_file": ..., "image_root": ...} of another, or, of
# a registered one with COCO annotations, {"name": ..., "aside": n, "part": "defender" or "rest"}:
# n of its images, or all others.
DatasetSpec = dict[str, Any]

_FOLDER = "study"
# Keys of a file below which stands what overrides the configuration.
_OVERRIDES = ("training", "repair", "comparison", "fine_tuning", "attack", "trigger")
# Likewise for each of several attacks.
_ATTACKED = ("variants", "unseen")
_WIDTH = 300


class ProfileError(ValueError):
    """A profile cannot be used; the message is one line that names the file and the reason."""


@dataclass(frozen=True)
class DetectorKind:
    """One of the paper's detectors.

    Attributes:
        name: in the names of steps and folders.
        title: in tables.
        config: below the shipped configs, or the whole path of another, without the end of its
            name; with ``.yaml`` it is the clean detector's, with ``_oda.yaml`` the attacked one's.
        groups: sets of module groups that the module study resets; none to leave the kind out.
        training: KEY VALUE pairs of its trainings.
        repair: KEY VALUE pairs of its repairs in the paper's comparison.
        specimens: the shipped specimens are its detectors, none is trained.
        warm: its detectors start from the specimens, as far as those fit: clean ones from the clean
            one of their seed, backdoored ones from the backdoored one.
    """

    name: str
    title: str
    config: str
    groups: tuple[tuple[str, ...], ...] = ()
    training: Pairs = ()
    repair: Pairs = ()
    specimens: bool = False
    warm: bool = False


@dataclass(frozen=True)
class Attack:
    """An attack that differs from the paper's in something.

    Attributes:
        name: in the names of steps and folders.
        title: in tables.
        trigger: KEY VALUE pairs of ``ATTACK.TRIGGER``.
        training: further KEY VALUE pairs of the configuration.
    """

    name: str
    title: str
    trigger: Pairs = ()
    training: Pairs = ()


@dataclass(frozen=True)
class Photos:
    """A second dataset, of one's own, and how its detectors are trained.

    Attributes:
        config: below the shipped configs, or the whole path of another.
        attack: KEY VALUE pairs of a backdoored detector's configuration.
        seeds: of the detectors of each kind.
        training: KEY VALUE pairs of every detector's configuration.
        variants: other attacks, for the population: the clean detector of the first seed is
            fine-tuned on poisoned photos.
        controls: how many clean detectors are made likewise, on clean photos.
        fine_tuning: KEY VALUE pairs of these trainings.
        folder: has ``annotations/train.json``, ``val.json`` (the defender's set), ``test.json``
            and ``images/``; empty while there are no photos.
    """

    config: str
    attack: Pairs
    seeds: tuple[int, ...]
    training: Pairs = ()
    variants: tuple[Attack, ...] = ()
    controls: int = 0
    fine_tuning: Pairs = ()
    folder: str = ""

    def dataset(self, part: str) -> DatasetSpec:
        """Annotations and images of one part, as the steps name datasets."""
        return {
            "json_file": f"{self.folder}/annotations/{part}.json",
            "image_root": f"{self.folder}/images",
        }


@dataclass(frozen=True)
class StudyProfile:
    """One size of the study.

    Attributes:
        name: in the report.
        detectors: the kinds of detectors.
        seeds: of the detectors; each kind is trained clean and backdoored with each of them.
        defender: the defender's set, as the steps name datasets.
        test: images to measure on.
        defender_images: number of its images.
        pool: registered dataset from which defender's sets of other sizes are drawn.
        sizes: of these sets.
        steps: numbers of fine-tuning steps to compare.
        training: KEY VALUE pairs of every training.
        repair: KEY VALUE pairs of every repair, ``REMOVAL.SOLVER`` foremost.
        comparison: further pairs of the repairs that are compared as in the paper: what is kept
            is fine-tuned slowly, what is reset at a training's rate.
        variants: attacks beyond the paper's: clean detectors are fine-tuned on poisoned data.
        unseen: attacks whose triggers no patch of the augmentation resembles, likewise.
        fine_tuning: KEY VALUE pairs of these trainings.
        photos: a dataset of one's own beside it, once :func:`with_photos` names it.
        training_opts: KEY VALUE pairs of every training, over all others.
        repair_opts: of every repair, over all but those that tell repairs apart.
        experiments: that are asked for where none are named; all of them if empty.
        figure_points: steps of fine-tuning after which Figure 4 measures, besides the last; of a
            shorter repair, those before its end.
    """

    name: str
    detectors: tuple[DetectorKind, ...]
    seeds: tuple[int, ...]
    defender: DatasetSpec
    test: DatasetSpec
    defender_images: int
    pool: str
    sizes: tuple[int, ...]
    steps: tuple[int, ...]
    training: Pairs = ()
    repair: Pairs = ()
    comparison: Pairs = ()
    variants: tuple[Attack, ...] = ()
    unseen: tuple[Attack, ...] = ()
    fine_tuning: Pairs = ()
    photos: Photos | None = None
    figure_points: tuple[int, ...] = ()
    training_opts: Pairs = ()
    repair_opts: Pairs = ()
    experiments: tuple[str, ...] = ()


def with_defender_images(profile: StudyProfile, images: int) -> StudyProfile:
    """The profile with another number of images set aside for the defender."""
    defender, test = (
        dataset | {"aside": images} if "aside" in dataset else dataset
        for dataset in (profile.defender, profile.test)
    )
    return replace(profile, defender=defender, test=test, defender_images=images)


def with_photos(profile: StudyProfile, folder: str) -> StudyProfile:
    """A profile that says how to train on photos with a folder of them; see :class:`Photos`."""
    return replace(profile, photos=replace(profile.photos, folder=folder))


def profile_schema() -> dict[str, Any]:
    """The JSON schema of a profile's file."""
    return shipped_schema("study/profile.schema.json")


def load_profile(source: str | Path) -> StudyProfile:
    """Read a profile.

    Args:
        source: a YAML file, or the name of one below the shipped ``configs/study``.

    Raises:
        ProfileError: it cannot be read, is not as the schema says, builds on one that does not
            exist or on itself, or names an attack, a config, an experiment or a key of the
            configuration that does not exist.
    """
    try:
        path = find_config(_FOLDER, source)
        content, folders = _read(path)
    except ValueError as error:
        raise ProfileError(str(error)) from None
    try:
        return _profile(content, folders)
    except ValueError as error:
        raise ProfileError(f"{path}: {shorten(' '.join(str(error).split()), _WIDTH)}") from None


def _read(path: Path, above: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[Path]]:
    """What a file and those that it builds on hold, and the folders of all of them.

    Args:
        path: of the file.
        above: files that build on it.

    Raises:
        ValueError: one of them cannot be read or does not fit the schema, or it builds on itself.
    """
    content = load_described(path, profile_schema())
    base = content.pop("base", None)
    if base is None:
        return content, [path.parent]
    above = (*above, path.resolve())
    try:
        found = find_config(_FOLDER, base, beside=path.parent)
    except ValueError as error:
        raise ValueError(f"{path}: base: {error}") from None
    if found.resolve() in above:
        raise ValueError(f"{path}: base: {base!r} builds on this file")
    below, folders = _read(found, above)
    attacks = below.get("attacks", {}) | content.get("attacks", {})
    return below | content | {"attacks": attacks}, [path.parent, *folders]


def _profile(content: Mapping[str, Any], folders: Sequence[Path]) -> StudyProfile:
    """The profile that files describe.

    Args:
        content: of the files, as the schema has it.
        folders: where its configs may lie beside the shipped ones.

    Raises:
        ValueError: something that it names does not exist, or does not fit the configuration.
    """
    for name in content.get("experiments", ()):
        EXPERIMENT_REGISTRY.get(name)
    images, aside = content["defender_images"], content["defender"].get("aside")
    if aside not in (None, images):
        raise ValueError(f"defender_images: {images}, but {aside} are set aside for the defender")
    attacks = content.get("attacks", {})
    made: dict[str, Any] = _attacked(content, attacks)
    made["detectors"] = tuple(
        DetectorKind(
            name=name,
            **_fields(kind, f"detectors/{name}/")
            | {"config": _config(kind["config"], folders, ".yaml", "_oda.yaml")},
        )
        for name, kind in content["detectors"].items()
    )
    if "photos" in content:
        photos = content["photos"]
        made["photos"] = Photos(
            **_fields(photos, "photos/")
            | _attacked(photos, attacks, "photos/")
            | {"config": _config(photos["config"], folders, "")}
        )
    fields = {key: value for key, value in content.items() if key != "attacks"}
    return StudyProfile(**_fields(fields) | made)


def _fields(content: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Values as the dataclasses have them, by their keys in a file.

    Args:
        content: the keys and what they hold.
        place: of them in the file.

    Raises:
        ValueError: what is to override the configuration does not fit it.
    """
    return {
        key: _pairs(value, place + key) if key in _OVERRIDES else _frozen(value)
        for key, value in content.items()
    }


def _attacked(
    content: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], place: str = ""
) -> dict[str, tuple[Attack, ...]]:
    """The attacks that detectors are fine-tuned by, under the keys that name them.

    Args:
        content: perhaps with those keys.
        known: title and trigger of every attack.
        place: of ``content`` in the file.

    Raises:
        ValueError: see :func:`_attack`.
    """
    return {
        key: tuple(
            _attack(name, training, known, place + key) for name, training in content[key].items()
        )
        for key in _ATTACKED
        if key in content
    }


def _attack(
    name: str, training: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]], place: str
) -> Attack:
    """An attack by its name, with what a training by it overrides.

    Raises:
        ValueError: it is unknown, or its training or trigger does not fit the configuration.
    """
    if name not in known:
        raise ValueError(f"{place}: no attack {name}; there are {', '.join(known) or 'none'}")
    return Attack(
        name=name,
        training=_pairs(training, f"{place}/{name}"),
        **_fields(known[name], f"attacks/{name}/"),
    )


def _pairs(overrides: Mapping[str, Any], place: str) -> Pairs:
    """KEY VALUE pairs of what overrides the configuration.

    Raises:
        ValueError: a key does not exist, or its value does not fit.
    """
    pairs = tuple(_frozen(part) for item in overrides.items() for part in item)
    try:
        merge_overrides(get_d2defense_cfg(), [str(part) for part in pairs])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return pairs


def _frozen(value: Any) -> Any:
    """The value with tuples for lists."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _config(name: str, folders: Iterable[Path], *ends: str) -> str:
    """The config of a name as steps name it: a shipped one by its name, another by its whole path.

    Args:
        name: in the file.
        folders: where it may lie beside the shipped configs.
        ends: to put to the name, one for each file.

    Raises:
        ValueError: no folder has all of them.
    """
    for folder in (*folders, config_root()):
        if all((folder / f"{name}{end}").is_file() for end in ends):
            return name if folder == config_root() else str((folder / name).resolve())
    files = " and ".join(f"{name}{end}" for end in ends)
    raise ValueError(f"no config {files}")
