# SPDX-License-Identifier: Apache-2.0
"""Weights files of the same bytes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable

from .found import Found
from .inspection import Inspector, Question


def merge_copies(found: list[Found], inspector: Inspector) -> list[Found]:
    """Leave of each set of files with the same bytes and the same config the first.

    It names the others. A file without a config is a copy of any that has one.

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
    """Note in the first of each config its copies, and return these."""
    firsts: dict[Hashable, Found] = {}
    copies = []
    for each in group:
        if each.error is None and firsts.setdefault(each.config_place, each) is not each:
            copies.append((firsts[each.config_place], each))
    if firsts:
        anyone = next(iter(firsts.values()))
        copies += [(anyone, each) for each in group if each.lacks_config]
    for first, copy in copies:
        first.copies += (str(copy.weights),)
    return [copy for _, copy in copies]
