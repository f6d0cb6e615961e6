# SPDX-License-Identifier: Apache-2.0
"""Weights files of the same bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable

from .found import Found
from .inspection import Inspector, Question
from .weights import FORMATS, format_by_name


def merge_copies(found: list[Found], inspector: Inspector) -> list[Found]:
    """Leave of files with the same bytes, config and format the first.

    It names the others. Bytes under the names of two formats are two files, since each is read in
    its own way. A file without a config is a copy of any that has one.

    Args:
        found: everything that was found, in order.
        inspector: takes digests of the files that may be the same.
    """
    alike: dict[Hashable, list[Found]] = defaultdict(list)
    for each in found:
        has_weights = each.kind is not None and each.kind.sample
        if has_weights and (each.error is None or each.lacks_config):
            alike[each.kind.sample].append(each)
    suspects = [each for group in alike.values() if _are_several(group) for each in group]
    if not suspects:
        return found
    # Names of one file need no digest to be the same.
    by_inode = {each.inode: each for each in suspects}
    questions = [Question("digest", each.weights) for each in by_inode.values()]
    digests = dict(zip(by_inode, inspector(questions), strict=True))
    same: dict[Hashable, list[Found]] = defaultdict(list)
    for each in suspects:
        digest = digests[each.inode]
        same[digest if type(digest) is str else each.inode].append(each)
    dropped = {id(copy) for group in same.values() for copy in _merge(group)}
    return [each for each in found if id(each) not in dropped]


def _are_several(group: list[Found]) -> bool:
    return len(group) > 1


def _merge(group: list[Found]) -> Iterable[Found]:
    """Note in the first of each config and format its copies, and return these."""
    firsts: dict[Hashable, Found] = {}
    copies: list[tuple[Found, Found]] = []
    # A name that says no format is that of a copy, if another name says one.
    for each in sorted(group, key=lambda each: format_by_name(each.weights) is None):
        if each.error is not None:
            continue
        formats = FORMATS if (named := format_by_name(each.weights)) is None else (named,)
        keys = [(each.config_place, name) for name in formats]
        first = next((firsts[key] for key in keys if key in firsts), None)
        if first is None:
            firsts[keys[0]] = each
        else:
            copies.append((first, each))
    if firsts:
        anyone = next(iter(firsts.values()))
        copies += [(anyone, each) for each in group if each.lacks_config]
    paths: dict[int, list[str]] = defaultdict(list)
    for first, copy in copies:
        paths[id(first)].append(str(copy.weights))
    for first in firsts.values():
        first.copies += tuple(paths[id(first)])
    return [copy for _, copy in copies]
