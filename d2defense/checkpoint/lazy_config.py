# SPDX-License-Identifier: Apache-2.0
"""LazyConfigs: of a checkpoint, as plain YAML; of the installed model zoo, as its Python files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, LazyConfig
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from omegaconf import OmegaConf, SCMode

from d2defense.modeling.adapter import ADAPTERS
from d2defense.modeling.described import (
    NAME,
    PARTIAL,
    TARGET,
    DescriptionError,
    check_names,
    detector_named,
    name_of,
)

from .limits import MAX_ANCHORS, MAX_INTEGER, MAX_LIST, MAX_TEXT

_REFERENCE = re.compile(r"\$\{(\.*)(\w+(?:\.\w+)*)\}")
_MAX_STEPS = 20
# Of a document with what it refers to: some hundred times what the zoo's have.
_MAX_VALUES = 50_000
_MAX_AT = {
    **dict.fromkeys(("depth", "num_blocks", "num_heads"), 1000),
    **dict.fromkeys(("output_size", "sampling_ratio"), 64),
    **dict.fromkeys(("pre_nms_topk", "post_nms_topk", "test_topk_candidates"), 50_000),
    "num_classes": 100_000,
}
_MAX_LAYERS = 64


def is_lazy(content: dict[str, Any]) -> bool:
    """Whether a document is a LazyConfig."""
    return any(isinstance(value, dict) and TARGET in value for value in content.values())


def config_of_lazy(content: dict[str, Any], defaults: CfgNode) -> CfgNode:
    """The configuration of the detector that a LazyConfig describes under ``model``.

    What else it says is left out, but for the size of test images. The detector's parts stand as
    data in ``MODEL.DESCRIPTION``, from which it is built.

    Args:
        content: the LazyConfig, plain values only.
        defaults: the keys and values to begin with.

    Raises:
        ValueError: it describes no detector, or asks for too much or for something not allowed.
    """
    resolved = _Resolver(content)
    tree = resolved(content.get("model"))
    if not isinstance(tree, dict) or TARGET not in tree:
        raise ValueError("a LazyConfig without a model")
    stock = detector_named(tree[TARGET])
    if stock is None:
        raise DescriptionError(
            f"its model is {str(tree[TARGET])[:80]!r}, which is no detector that can be probed"
        )
    check_names({key: value for key, value in tree.items() if key != TARGET})
    _check_sizes(tree)
    cfg = defaults.clone()
    adapter = ADAPTERS[stock.__name__]
    cfg.MODEL.META_ARCHITECTURE = stock.__name__
    heads, proposing = (tree.get(key) or {} for key in ("roi_heads", "proposal_generator"))
    if proposing:
        cfg.MODEL.PROPOSAL_GENERATOR.NAME = _last(proposing)
        cfg.MODEL.ROI_HEADS.NAME = _last(heads)
    cfg.merge_from_list([adapter.classes_key, _number_of_classes(heads or tree)])
    cfg.MODEL.MASK_ON = bool(heads.get("mask_head"))
    keypoints = heads.get("keypoint_head") or {}
    cfg.MODEL.KEYPOINT_ON = bool(keypoints)
    if keypoints:
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = keypoints["num_keypoints"]
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = tree["pixel_mean"], tree["pixel_std"]
    loader = _at(content, "dataloader")
    test = _at(content, "dataloader", "test")
    test = resolved(test.get("mapper") or {}, (content, loader, test))
    cfg.INPUT.FORMAT = str(tree.get("input_format") or test.get("image_format") or "BGR")
    for each in test.get("augmentations") or []:
        if isinstance(each, dict) and str(each.get(TARGET)).endswith(".ResizeShortestEdge"):
            sizes = each["short_edge_length"], each["max_size"]
            cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = map(int, sizes)
    cfg.MODEL.DESCRIPTION = json.dumps(tree)
    return cfg


def read_zoo_config(path: Path) -> dict[str, Any]:
    """A LazyConfig of the installed model zoo as plain values: runs that file.

    Raises:
        ValueError: it cannot be said in plain values.
    """
    loaded = LazyConfig.load(str(path))
    return {
        key: _plain(
            OmegaConf.to_container(
                loaded[key], resolve=False, structured_config_mode=SCMode.INSTANTIATE
            )
        )
        for key in ("model", "dataloader")
        if key in loaded
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        target = value.get(TARGET)
        plain = {key: _plain(each) for key, each in value.items() if key != TARGET}
        return plain if target is None else {TARGET: _name(target), **plain}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {TARGET: name_of(type(value)), **dataclasses.asdict(value)}
    if isinstance(value, type):
        return {NAME: name_of(value)}
    if isinstance(value, partial) and not value.args:
        return {TARGET: name_of(value.func), PARTIAL: True, **value.keywords}
    if callable(value):
        # The zoo's norms as a function of the channels.
        made = value(1)
        if isinstance(made, NaiveSyncBatchNorm):
            return "naiveSyncBN_N" if made._stats_mode == "N" else "naiveSyncBN"
        raise ValueError(f"it holds a function that makes a {type(made).__name__}")
    return value


def _name(target: Any) -> str:
    return target if isinstance(target, str) else name_of(target)


class _Resolver:
    """Puts in place of each interpolation of a document what it refers to, as OmegaConf has them.

    Args:
        root: the document.
    """

    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = _MAX_VALUES

    def __call__(self, value: Any, above: tuple[Any, ...] = (), steps: int = 0) -> Any:
        """The value without interpolations.

        Args:
            value: of the document.
            above: the mappings and lists that the value lies in, the outermost first.
            steps: references that led to it.

        Raises:
            ValueError: a reference leads nowhere, or they make more of the document than any
                detector needs.
        """
        # A list of ten references to a list of ten references, and so on, grows without end.
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it is more than {_MAX_VALUES} values with what it refers to")
        if isinstance(value, dict):
            return {key: self(each, (*above, value), steps) for key, each in value.items()}
        if isinstance(value, list):
            return [self(each, (*above, value), steps) for each in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        return self(*self._place(value, above, steps), steps + 1)

    def _place(self, text: str, above: tuple[Any, ...], steps: int) -> tuple[Any, tuple[Any, ...]]:
        """What an interpolation refers to, and what that lies in."""
        found = _REFERENCE.fullmatch(text)
        if found is None or steps >= _MAX_STEPS or len(found[1]) > len(above):
            raise ValueError(f"it holds {text[:80]!r}, which refers to no value of it")
        path = (self._root,) if not found[1] else above[: len(above) - len(found[1]) + 1]
        for key in found[2].split("."):
            place = path[-1]
            try:
                path = (*path, place[int(key)] if isinstance(place, list) else place[key])
            except (LookupError, TypeError, ValueError):
                raise ValueError(
                    f"it holds {text[:80]!r}, which refers to no value of it"
                ) from None
        return path[-1], path[:-1]


def _check_sizes(tree: dict[str, Any]) -> None:
    """Refuse what is too much to build a model from it, by arithmetic alone."""
    for key, value in _leaves("model", tree):
        limit = _MAX_AT.get(key, MAX_INTEGER)
        if isinstance(value, list):
            most = _MAX_LAYERS if key.endswith("_dims") else MAX_LIST
            if len(value) > most:
                raise ValueError(f"{key} has {len(value)} items; at most {most} are allowed")
            if key == "sizes":
                _check_anchors(value)
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            raise ValueError(f"{key} has {len(value)} characters; at most {MAX_TEXT} are allowed")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{key} is {value}")
        elif isinstance(value, int) and abs(value) > limit:
            raise ValueError(f"{key} is larger than {limit}")


def _check_anchors(sizes: list[Any]) -> None:
    if max((len(each) for each in sizes if isinstance(each, list)), default=0) > MAX_ANCHORS // 10:
        raise ValueError(f"sizes asks for more than {MAX_ANCHORS // 10} anchors at each place")


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, child in value.items():
            yield from _leaves(str(name), child)
        return
    yield key, value
    if isinstance(value, list):
        for child in value:
            yield from _leaves(key, child)


def _number_of_classes(part: dict[str, Any]) -> int:
    """That all classifiers of a part agree on."""
    heads = [part]
    for key in ("head", "box_predictor", "box_predictors", "mask_head"):
        below = part.get(key) or []
        heads += below if isinstance(below, list) else [below]
    # A mask head that does not tell classes apart has one.
    numbers = {each["num_classes"] for each in heads if each.get("num_classes", 1) != 1}
    numbers = numbers or {1}
    if len(numbers) > 1 or not all(type(each) is int for each in numbers):
        raise ValueError("its heads have different numbers of classes")
    return numbers.pop()


def _last(part: dict[str, Any]) -> str:
    return str(part.get(TARGET, "")).rpartition(".")[2]


def _at(content: Any, *keys: str) -> dict[str, Any]:
    found = reduce(lambda at, key: at.get(key) if isinstance(at, dict) else None, keys, content)
    return found if isinstance(found, dict) else {}
