# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints a path stands for.

Names are listed here, and what is in the files is asked of an inspector, which may be another
process: nothing of an untrusted file is read in this module.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from d2defense.config.zoo import zoo_config, zoo_configs
from d2defense.text import shorten

from .copies import merge_copies
from .errors import CheckpointError, NoCheckpointError
from .file_kinds import (
    FOREIGN,
    OTHER,
    WEIGHTS,
    FileKind,
    foreign_by_name,
    looks_like_weights,
    name_class,
)
from .found import Found
from .inspection import Answer, ConfigFacts, Inspector, Question, inspect_here
from .naming import UniqueNames
from .output_folder import (
    CONFIG_NAME,
    FINAL_NAMES,
    LAZY_CONFIG_NAMES,
    MARKER_NAME,
    Candidate,
    Group,
    group_folders,
    is_elsewhere,
    place_of,
)
from .regular_file import reason_of
from .source import CheckpointSource, Discovery, LeftOut
from .tree import Folder, Tree, list_file, list_tree
from .weights import describe_suffixes

_QUOTED = 100


def find_checkpoints(
    paths: Iterable[str | Path],
    config_file: Path | None = None,
    model_zoo: str | None = None,
    only_final: bool = False,
) -> list[CheckpointSource]:
    """The sources of :func:`discover`, whose files are looked at in this process."""
    return discover(paths, config_file, model_zoo, only_final).sources


def discover(
    paths: Iterable[str | Path],
    config_file: Path | None = None,
    model_zoo: str | None = None,
    only_final: bool = False,
    inspector: Inspector = inspect_here,
) -> Discovery:
    """All weights at and below ``paths``, in their order, each set of weights once.

    A path is a weights file, or a folder to search at any depth. Whatever a usual reader could load
    weights from is found by its bytes, whatever could be weights by its name. The config of weights
    is the ``config.yaml`` beside them, or in the next folder above that has one. Of files of the
    same bytes and config, one is a source, which names the others; a file that holds several sets
    of weights is as many sources. Symbolic links to folders are not followed, and files must lie,
    with links resolved, inside the path that the caller named.

    Args:
        paths: files and folders.
        config_file: configuration of checkpoints that have no ``config.yaml``; trusted.
        model_zoo: name of a config of the installed Detectron2's model zoo, to the same end.
        only_final: take of each output folder only the weights that Detectron2's conventions
            choose (``model_final``, else what ``last_checkpoint`` names, else the newest
            ``model_<iteration>.pth``), and of each file what Detectron2 loads.
        inspector: looks at the files.

    Returns:
        The sources, those with an ``error`` among them: paths that hold no checkpoint, weights that
        cannot be scanned, and what cannot be looked at. What else was passed over.

    Raises:
        ValueError: both ``config_file`` and ``model_zoo``, or a name that is not in the zoo.
    """
    fallback = _fallback_config(config_file, model_zoo)
    given = [_list(Path(path)) for path in paths]
    answers = _ask([question for one in given for question in _questions(one)], inspector)
    found: list[Found] = []
    left_out: list[LeftOut] = []
    seen: set[tuple[str, str]] = set()
    for one in given:
        finder = _Finder(one, answers, fallback, only_final)
        for each in finder.find():
            # The same weights with another config are another detector.
            key = (os.path.abspath(each.weights or each.path), each.config_place)
            if key not in seen:
                seen.add(key)
                found.append(each)
        left_out += finder.left_out
    names = UniqueNames()
    sources = [
        source
        for each in merge_copies(found, inspector)
        for source in each.sources(names, only_final)
    ]
    return Discovery(sources, list(dict.fromkeys(left_out)))


def _fallback_config(config_file: Path | None, model_zoo: str | None) -> Path | None:
    if config_file is not None and model_zoo is not None:
        raise ValueError("give a config file or a name of the model zoo, not both")
    if model_zoo is None:
        return None if config_file is None else Path(config_file)
    found = zoo_config(model_zoo)
    if found is None:
        known = zoo_configs()
        hint = f"such as {known[len(known) // 4]}" if known else "which has no configs installed"
        raise ValueError(f"{model_zoo[:100]!r} is not in Detectron2's model zoo, {hint}")
    return found


@dataclass(frozen=True)
class _Given:
    """A path that the caller named, with what is below it.

    Attributes:
        path: as named.
        tree: its names; of a file, its own and its config's.
        is_file: whether the caller named a file.
        error: why there is nothing.
    """

    path: Path
    tree: Tree = field(default_factory=lambda: Tree(Path()))
    is_file: bool = False
    error: str | None = None


def _list(path: Path) -> _Given:
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            return _Given(path, list_tree(path))
        beside = list_file(path, (CONFIG_NAME, *LAZY_CONFIG_NAMES))
        return _Given(path, Tree(path.parent, [beside]), is_file=True)
    except FileNotFoundError:
        return _Given(path, error="no such file or folder")
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        return _Given(path, error=reason_of(error))


def _questions(given: _Given) -> Iterator[tuple[Question, Hashable]]:
    """What is to be asked, and what makes two questions the same."""
    for folder in given.tree.folders:
        for name, entry in folder.files.items():
            if name == CONFIG_NAME:
                yield Question("config", entry.path), entry.path
            elif name == MARKER_NAME:
                yield Question("marker", entry.path), entry.path
            if not given.is_file or entry.path == given.path:
                # Thousands of links to one file cost nothing, and are looked at once.
                yield Question("kind", entry.path), (entry.inode, name_class(name))


def _ask(
    questions: list[tuple[Question, Hashable]], inspector: Inspector
) -> dict[Question, Answer]:
    asked = {(question.about, same): question for question, same in reversed(questions)}
    answered = dict(zip(asked, inspector(list(asked.values())), strict=True))
    return {question: answered[question.about, same] for question, same in questions}


class _Finder:
    """Decides what one given path stands for."""

    def __init__(
        self,
        given: _Given,
        answers: dict[Question, Answer],
        fallback: Path | None,
        only_final: bool,
    ) -> None:
        self._given = given
        self._root = given.tree.root
        self._answers = answers
        self._fallback = fallback
        self._only_final = only_final
        self._files = {
            entry.path: entry for folder in given.tree.folders for entry in folder.files.values()
        }
        #: What was passed over.
        self.left_out: list[LeftOut] = []

    def find(self) -> Iterator[Found]:
        """What there is, in the order of the walk."""
        given = self._given
        if given.error is not None:
            yield _failed(given.path, given.error)
        elif given.is_file:
            yield self._named_file()
        else:
            found = list(self._in_folders())
            found += [_failed(path, reason) for path, reason in given.tree.problems]
            if not found:
                is_empty = not any(f.files or f.broken or f.folders for f in given.tree.folders[:1])
                reason = (
                    "the folder is empty"
                    if is_empty
                    else f"no checkpoint in this folder ({describe_suffixes()})"
                )
                found = [Found(given.path, error=NoCheckpointError(given.path, reason))]
            yield from found

    def _named_file(self) -> Found:
        path, (folder,) = self._given.path, self._given.tree.folders
        kind = self._answers[Question("kind", path)]
        if reason := foreign_by_name(path):
            return _failed(path, reason)
        if isinstance(kind, CheckpointError):
            return _failed(path, kind.reason)
        if kind.kind != WEIGHTS:
            return _failed(path, kind.reason or f"not a weights file ({describe_suffixes()})")
        candidate = Candidate(path, folder.files[path.name].inode, kind)
        group = Group(folder, [candidate])
        warnings = self._name_weights(group)
        found = self._found(candidate, path, path.name, group)
        found.warnings = warnings
        return found

    def _in_folders(self) -> Iterator[Found]:
        groups = self._groups()
        closed: set[Path] = set()
        for group in groups:
            inside = next((p for p in group.folder.path.parents if p in closed), None)
            if inside is not None:
                self._pass_over(group.candidates, f"below {inside}; only final weights are scanned")
                continue
            yield from self._in_group(group)
            # What lies below an output folder (inference/, TensorBoard's events) belongs to it.
            if self._only_final and group.candidates and (group.has_config or group.final):
                closed.add(group.folder.path)

    def _groups(self) -> list[Group]:
        """The folders with weights or a config, in the order of the walk."""
        groups: dict[Path, Group] = {}
        for folder, home in group_folders(self._given.tree.folders, self._hands_down):
            group = groups.setdefault(home.path, Group(home))
            group.candidates += self._candidates(folder)
        return list(groups.values())

    def _hands_down(self, folder: Folder) -> bool:
        """Whether a folder has a config that could be that of weights below it."""
        facts = self._answers.get(Question("config", folder.path / CONFIG_NAME))
        return isinstance(facts, ConfigFacts) and facts.is_detectron2

    def _candidates(self, folder: Folder) -> Iterator[Candidate]:
        """The weights directly in a folder, and what cannot be looked at."""
        for name in FINAL_NAMES:
            if name in folder.folders:
                yield Candidate(folder.path / name, problem="is not a regular file")
        for name, entry in folder.files.items():
            kind = self._answers[Question("kind", entry.path)]
            if name == CONFIG_NAME:
                continue  # said where it is read as a config
            if name == MARKER_NAME and isinstance(kind, CheckpointError):
                continue
            if isinstance(kind, CheckpointError):
                yield Candidate(entry.path, error=kind.reason)
            elif kind.kind != OTHER:
                yield Candidate(entry.path, entry.inode, kind)
            elif kind.reason:
                self.left_out.append(LeftOut(entry.path, kind.reason))
        for name, broken in folder.broken.items():
            if name in (CONFIG_NAME, MARKER_NAME):
                continue
            is_named_so = looks_like_weights(name) or looks_like_weights(broken.target)
            if is_named_so or (broken.target and not broken.leads_out):
                yield Candidate(broken.path, problem=broken.reason)
            elif broken.leads_out:
                self.left_out.append(LeftOut(broken.path, f"{broken.reason}; it is not followed"))

    def _in_group(self, group: Group) -> Iterator[Found]:
        folder = group.folder
        warnings = self._name_weights(group)
        bad_marker = list(self._marker(group))
        yield from bad_marker
        config = self._answers.get(Question("config", folder.path / CONFIG_NAME))
        if not group.candidates:
            kind = self._answers.get(Question("kind", folder.path / CONFIG_NAME))
            broken = folder.problem(CONFIG_NAME)
            if broken is not None and CONFIG_NAME not in folder.folders:
                yield _failed(folder.path, f"{CONFIG_NAME} {broken.reason}")
            elif isinstance(config, CheckpointError):
                yield _failed(folder.path, f"{CONFIG_NAME}: {config.reason}")
            elif isinstance(kind, FileKind) and kind.kind != OTHER:
                reason = kind.reason or "holds weights, and there is no config for them"
                yield _failed(folder.path / CONFIG_NAME, reason)
            elif not bad_marker and isinstance(config, ConfigFacts) and config.is_detectron2:
                yield _failed(
                    folder.path, f"no weights file ({describe_suffixes()}) beside {CONFIG_NAME}"
                )
            return
        primary = group.primary
        chosen = group.candidates
        if self._only_final:
            here = [c for c in chosen if c.path.parent == folder.path] or chosen
            chosen = here if primary is None else [primary]
        found = []
        for candidate in sorted(chosen, key=lambda candidate: candidate is not primary):
            if candidate is primary:
                name, path = os.path.basename(os.path.abspath(folder.path)), folder.path
            elif group.has_config:
                below = os.path.relpath(candidate.path, folder.path)
                parts = [part for part in Path(below).parts if part != os.pardir]
                name = "_".join((os.path.basename(os.path.abspath(folder.path)), *parts))
                path = candidate.path
            else:
                name, path = candidate.path.name, candidate.path
            found.append(self._found(candidate, path, name, group))
        taken = {id(candidate) for candidate in chosen}
        others = [candidate for candidate in group.candidates if id(candidate) not in taken]
        self._pass_over(others, f"not the final weights of {folder.path}")
        found[0].left_out = tuple(str(candidate.path) for candidate in others)
        found[0].warnings = warnings
        yield from found

    def _found(self, candidate: Candidate, path: Path, name: str, group: Group) -> Found:
        """A candidate with its config, reported as ``path``."""
        what = "it" if candidate.path == path else candidate.path.name
        found = Found(path, name, candidate.path, inode=candidate.inode, kind=candidate.kind)
        broken = group.folder.problem(CONFIG_NAME)
        if candidate.problem is not None:
            found.fail(f"{what} {candidate.problem}")
        elif candidate.error is not None or candidate.kind.kind == FOREIGN:
            reason = candidate.error or candidate.kind.reason
            found.fail(reason if path == candidate.path else f"{what}: {reason}")
        elif broken is not None:
            found.fail(f"{CONFIG_NAME} {broken.reason}")
        elif group.has_config:
            found.config = group.folder.path / CONFIG_NAME
        elif self._fallback is not None:
            found.config, found.trusted_config = self._fallback, True
        else:
            found.fail(_no_config(group.folder, what))
            found.lacks_config = True
        return found

    def _name_weights(self, group: Group) -> tuple[str, ...]:
        """Follow ``MODEL.WEIGHTS`` of a group's config; what is to be said of it."""
        folder = group.folder.path
        facts = self._answers.get(Question("config", folder / CONFIG_NAME))
        if not isinstance(facts, ConfigFacts) or not facts.weights:
            return ()
        name = facts.weights.partition("?")[0]
        for base in (folder, self._root):
            place = place_of(name, base, self._root)
            if place in self._files:
                group.configured = place
                self._promote(group, place)
                return ()
        if not is_elsewhere(name):
            return ()
        return (
            f"its config names other weights, which were not scanned: MODEL.WEIGHTS is "
            f"{shorten(name, _QUOTED)!r}",
        )

    def _marker(self, group: Group) -> Iterator[Found]:
        """Follow ``last_checkpoint`` of a group; an error if it leads where nobody may look."""
        path = group.folder.path / MARKER_NAME
        broken = group.folder.broken.get(MARKER_NAME)
        answer = self._answers.get(Question("marker", path))
        is_weights = any(candidate.path == path for candidate in group.candidates)
        if broken is not None or isinstance(answer, CheckpointError):
            reason = f"it {broken.reason}" if broken is not None else answer.reason
            if not is_weights:
                yield from self._bad_marker(group, path, reason)
        if type(answer) is not str:
            return
        place = place_of(answer, group.folder.path, self._root) if answer else None
        if place in self._files:
            group.marker = place
            self._promote(group, place)
        elif is_weights:
            return  # they are judged as such
        elif answer and place is None:
            yield from self._bad_marker(
                group, path, f"it names weights outside of {self._root}, which were not scanned"
            )
        else:
            reason = f"it names {shorten(answer, _QUOTED)!r}, which is not here"
            if self._only_final and group.final is None:
                yield from self._bad_marker(group, path, reason)
            else:
                self.left_out.append(LeftOut(path, reason))

    def _bad_marker(self, group: Group, path: Path, reason: str) -> Iterator[Found]:
        if self._only_final and group.final is not None:
            self.left_out.append(LeftOut(path, reason))
        else:
            yield _failed(path, reason)

    def _promote(self, group: Group, path: Path) -> None:
        """Take a file of the tree for weights of a group that names it as such."""
        if any(candidate.path == path for candidate in group.candidates):
            return
        kind = self._answers.get(Question("kind", path))
        if isinstance(kind, FileKind):
            kind = FileKind(WEIGHTS) if kind.kind == OTHER else kind
            group.candidates.append(Candidate(path, self._files[path].inode, kind))

    def _pass_over(self, candidates: list[Candidate], reason: str) -> None:
        self.left_out += [LeftOut(candidate.path, reason) for candidate in candidates]


def _failed(path: Path, reason: str) -> Found:
    return Found(path, error=CheckpointError(path, reason))


def _no_config(folder: Folder, what: str) -> str:
    lazy = next((name for name in LAZY_CONFIG_NAMES if name in folder), None)
    if lazy is not None:
        return f"no {CONFIG_NAME}; {lazy} is a LazyConfig, which would have to be executed"
    return f"no {CONFIG_NAME} beside {what}"
