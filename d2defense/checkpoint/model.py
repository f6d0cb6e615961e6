# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint on disk to an instrumented detector: the one way to load one."""

from __future__ import annotations

import logging
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from detectron2.checkpoint.c2_model_loading import align_and_update_state_dicts
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from d2defense.devices import resolve_device

from .config import load_config
from .errors import CheckpointError
from .limits import DEFAULT_LIMITS, SizeLimits
from .size import activation_bytes
from .tensors import TensorSpec
from .weight_sets import WeightsFile
from .weights import open_weights

# Buffers that older Detectron2 releases stored and newer ones compute.
_OBSOLETE_BUFFERS = re.compile(r"pixel_mean|pixel_std|.*\.anchor_generator\.cell_anchors\.\d+")
# Statistics that files of Detectron lack, where normalisation was an affine layer, and their
# neutral values.
_NEUTRAL_STATISTICS = {"running_mean": 0, "running_var": 1, "num_batches_tracked": 0}
# Alignment compares every name of the file with every name of the model.
_MAX_ALIGNED_TENSORS = 10_000


def build_detector(
    weights: Path,
    config: Path,
    device: str | None = None,
    limits: SizeLimits = DEFAULT_LIMITS,
    trusted_config: bool = False,
    member: str | None = None,
) -> tuple[nn.Module, CfgNode]:
    """The instrumented detector of a checkpoint, in eval mode, and its configuration.

    Before anything of the model's size is allocated, it is built on PyTorch's meta device, which
    knows shapes only, and compared with the limits and with what the weights file announces.

    Args:
        weights: the weights file.
        config: the configuration beside it.
        device: where to put the model; the config's choice, or the CPU without a GPU, if None.
        limits: how large a model may be.
        trusted_config: whether the user vouches for the config (:func:`read_config_file`).
        member: which set of weights of the file (:func:`weight_sets`); Detectron2's if None.

    Raises:
        CheckpointError: either file is unusable, or they do not fit each other.
    """
    cfg = load_config(config, trusted_config, device)
    cfg.MODEL.DEVICE = resolve_device(cfg.MODEL.DEVICE)
    skeleton = _build_skeleton(cfg, config)
    _check_size(skeleton, cfg, config, limits)
    weights = Path(weights)
    matched = _match(open_weights(weights, member), skeleton.state_dict(), weights)
    model = _build(cfg, config)
    _copy(matched, model, weights)
    return model.eval(), cfg


def load_weights(model: nn.Module, path: Path, member: str | None = None) -> None:
    """Load a weights file into a model that it fits exactly.

    Args:
        model: the model.
        path: the weights file.
        member: which set of weights of the file (:func:`weight_sets`); Detectron2's if None.

    Raises:
        CheckpointError: unreadable, or its tensors are not those of the model.
    """
    _copy(_match(open_weights(path, member), model.state_dict(), path), model, path)


def _build(cfg: CfgNode, config: Path) -> nn.Module:
    try:
        return build_model(cfg)
    except Exception as error:  # any key of an untrusted config can be wrong in any way
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        raise CheckpointError(config, f"no model can be built from it: {reason}") from None


def _build_skeleton(cfg: CfgNode, config: Path) -> nn.Module:
    """The detector on PyTorch's meta device, where tensors have shapes but no memory."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return _build(cfg, config).eval()


def _check_size(skeleton: nn.Module, cfg: CfgNode, config: Path, limits: SizeLimits) -> None:
    parameters = sum(tensor.numel() for tensor in skeleton.state_dict().values())
    if parameters > limits.parameters:
        raise CheckpointError(
            config, f"asks for {parameters} parameters; at most {limits.parameters} are allowed"
        )
    needed = activation_bytes(skeleton, cfg)
    if needed > limits.activation_bytes:
        raise CheckpointError(
            config,
            f"a forward pass over one image makes {needed} bytes of activations; at most "
            f"{limits.activation_bytes} are allowed",
        )


def _check_fit(
    specs: Mapping[str, TensorSpec | Tensor], expected: Mapping[str, Tensor], path: Path
) -> None:
    """Check that names and shapes are those of the model, obsolete buffers aside.

    Raises:
        CheckpointError: they are not.
    """
    specs = {k: v for k, v in specs.items() if k in expected or not _OBSOLETE_BUFFERS.fullmatch(k)}
    differing = [
        k for k, v in specs.items() if k in expected and tuple(v.shape) != tuple(expected[k].shape)
    ]
    if differing:
        key = differing[0]
        raise CheckpointError(
            path,
            f"{len(differing)} tensors have another shape than the config says, first {key}: "
            f"{tuple(specs[key].shape)} instead of {tuple(expected[key].shape)}",
        )
    missing = [k for k in expected if k not in specs]
    unexpected = [k for k in specs if k not in expected]
    for keys, what in ((missing, "lacks"), (unexpected, "has beyond the config")):
        if keys:
            raise CheckpointError(path, f"{what} {len(keys)} tensors, first {str(keys[0])[:120]}")


class _Matched(NamedTuple):
    """Tensors of a file that belong to a model.

    Attributes:
        state: by the names of the model's state dict.
        obsolete: buffers that the model computes, and older Detectron2 releases load.
        versions: of the modules that wrote them.
    """

    state: dict[str, Tensor]
    obsolete: dict[str, Tensor]
    versions: dict[str, int]


def _match(file: WeightsFile, expected: Mapping[str, Tensor], path: Path) -> _Matched:
    """The tensors of a file for those of a model, which may be on the meta device."""
    if not file.matching_heuristics:
        _check_fit(file.specs, expected, path)
        loaded = state = file.load()
    else:
        _check_amount(file.specs, path)
        loaded = file.load()
        state = _aligned(loaded, expected, file.caffe2, path)
        _check_fit(state, expected, path)
    obsolete = {
        name: tensor
        for name, tensor in loaded.items()
        if name not in expected and _OBSOLETE_BUFFERS.fullmatch(name)
    }
    return _Matched({name: state[name] for name in expected}, obsolete, file.versions)


def _copy(matched: _Matched, model: nn.Module, path: Path) -> None:
    _check_obsolete(matched.obsolete, dict(model.named_buffers()), path)
    state = OrderedDict(matched.state)
    # Modules convert tensors of older versions.
    state._metadata = {name: {"version": number} for name, number in matched.versions.items()}
    try:
        model.load_state_dict(state)
    except Exception as error:
        reason = str(error).strip().rsplit("\n", 1)[-1]
        raise CheckpointError(
            path, f"its tensors cannot be copied into the model: {reason}"
        ) from None


def _check_obsolete(
    obsolete: Mapping[str, Tensor], buffers: Mapping[str, Tensor], path: Path
) -> None:
    """Check that buffers which only older Detectron2 releases load are those of the config.

    Raises:
        CheckpointError: they are not, so the weights are another detector there.
    """
    for name, tensor in obsolete.items():
        known = buffers.get(name)
        # Files of half precision round them.
        if known is None or not (
            tensor.shape == known.shape
            and torch.allclose(tensor.double(), known.double().cpu(), rtol=1e-3, atol=1e-3)
        ):
            raise CheckpointError(
                path,
                f"its {name[:120]} is not that of the config; older releases of Detectron2 load it",
            )


def _check_amount(specs: Mapping[str, TensorSpec], path: Path) -> None:
    """Refuse what is too much to be loaded and compared with a model."""
    numbers = sum(spec.numel for spec in specs.values())
    if len(specs) > _MAX_ALIGNED_TENSORS or numbers > DEFAULT_LIMITS.parameters:
        raise CheckpointError(
            path,
            f"holds {len(specs)} tensors of {numbers} numbers; at most {_MAX_ALIGNED_TENSORS} of "
            f"{DEFAULT_LIMITS.parameters} can be aligned",
        )


def _aligned(
    state: dict[str, Tensor], expected: Mapping[str, Tensor], caffe2: bool, path: Path
) -> dict[str, Tensor]:
    """Detectron2's own matching of names; tensors of the file that match nothing are left out.

    Unlike in Detectron2, one of the model that nothing matches is an error (:func:`_check_fit`).
    """
    try:
        with _quiet("detectron2.checkpoint.c2_model_loading"):
            aligned = align_and_update_state_dicts(expected, state, c2_conversion=caffe2)
    except Exception as error:  # names that fit no pattern fail in many ways
        raise CheckpointError(
            path, f"its names cannot be aligned with the model's: {error}"
        ) from None
    aligned = {name: tensor for name, tensor in aligned.items() if name in expected}
    for name, tensor in expected.items():
        value = _NEUTRAL_STATISTICS.get(name.rpartition(".")[2])
        if value is not None:
            aligned.setdefault(name, torch.full(tensor.shape, value, dtype=tensor.dtype))
    return aligned


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a logger silent: what it would print holds names from an untrusted file."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
