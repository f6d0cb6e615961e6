# SPDX-License-Identifier: Apache-2.0
"""Giving module groups back the parameters of a freshly built detector."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.env import seed_all_rng
from torch import Tensor, nn

from d2defense.modeling import module_group_parameters


def reset_modules(model: nn.Module, cfg: CfgNode, modules: Sequence[str], seed: int) -> list[str]:
    """Replace the parameters and buffers of ``modules`` by freshly initialised ones, in place.

    The reset of the paper's targeted renewal fine-tuning (arXiv 2409.16057, section 3.5). The
    initialisation is the one Detectron2 gives the module when it builds the model; everything
    else stays bit-identical.

    Args:
        model: an instrumented detector.
        cfg: the configuration that builds it.
        modules: names of module groups (:func:`d2defense.modeling.resettable_modules`).
        seed: of the initialisation.

    Returns:
        Names of the tensors that were replaced.

    Raises:
        ValueError: the model has no such module group.
    """
    names = module_group_parameters(model, list(modules))
    fresh = fresh_state_dict(cfg, seed)
    state = model.state_dict()
    model.load_state_dict(state | {name: fresh[name] for name in names})
    return names


def fresh_state_dict(cfg: CfgNode, seed: int) -> dict[str, Tensor]:
    """The tensors of the detector as Detectron2 initialises it when it builds it.

    Args:
        cfg: its configuration.
        seed: of every random generator, which this sets.
    """
    seed_all_rng(seed)
    return build_model(cfg).state_dict()
