# SPDX-License-Identifier: Apache-2.0
"""From a checkpoint on disk to an instrumented detector: the one way to load one."""

from __future__ import annotations

import re
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from d2defense.engine.device import resolve_device

from .config import load_config
from .errors import CheckpointError
from .weights import load_state_dict

# Buffers that older Detectron2 releases stored and newer ones compute.
_OBSOLETE_BUFFERS = re.compile(r"pixel_mean|pixel_std|.*\.anchor_generator\.cell_anchors\.\d+")


def build_detector(
    weights: Path, config: Path, device: str | None = None
) -> tuple[nn.Module, CfgNode]:
    """The instrumented detector of a checkpoint, in eval mode, and its configuration.

    Args:
        weights: the weights file.
        config: the configuration beside it.
        device: where to put the model; the config's choice, or the CPU without a GPU, if None.

    Raises:
        CheckpointError: either file is unusable, or they do not fit each other.
    """
    cfg = load_config(config)
    try:
        cfg.MODEL.DEVICE = resolve_device(device or cfg.MODEL.DEVICE)
        model = build_model(cfg)
    except Exception as error:  # any key of an untrusted config can be wrong in any way
        reason = f"{type(error).__name__}: {error}".split("\n", 1)[0]
        raise CheckpointError(config, f"no model can be built from it: {reason}") from None
    load_weights(model, Path(weights))
    return model.eval(), cfg


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a weights file into a model that it fits exactly.

    Raises:
        CheckpointError: unreadable, or its tensors are not those of the model.
    """
    state: dict[str, Tensor] = load_state_dict(path)
    expected = model.state_dict()
    state = {k: v for k, v in state.items() if k in expected or not _OBSOLETE_BUFFERS.fullmatch(k)}
    differing = [k for k, v in state.items() if k in expected and v.shape != expected[k].shape]
    if differing:
        key = differing[0]
        raise CheckpointError(
            path,
            f"{len(differing)} tensors have another shape than the config says, first {key}: "
            f"{tuple(state[key].shape)} instead of {tuple(expected[key].shape)}",
        )
    missing = [k for k in expected if k not in state]
    unexpected = [k for k in state if k not in expected]
    for keys, what in ((missing, "lacks"), (unexpected, "has beyond the config")):
        if keys:
            raise CheckpointError(path, f"{what} {len(keys)} tensors, first {str(keys[0])[:120]}")
    try:
        model.load_state_dict(state)
    except Exception as error:  # sparse, quantized or meta tensors of the right shape
        reason = str(error).strip().rsplit("\n", 1)[-1]
        raise CheckpointError(
            path, f"its tensors cannot be copied into the model: {reason}"
        ) from None
