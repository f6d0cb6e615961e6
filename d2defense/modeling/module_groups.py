# SPDX-License-Identifier: Apache-2.0
"""Named groups of parameters that can be reset."""

from __future__ import annotations

from torch import nn


def resettable_modules(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """The module groups of ``model``, each as prefixes of parameter and buffer names.

    Groups of heads that the model does not have (a mask head, say) are left out.

    Args:
        model: an instrumented detector.
    """
    groups = model.resettable_modules
    names = list(model.state_dict())
    return {
        group: prefixes
        for group, prefixes in groups.items()
        if any(name.startswith(prefixes) for name in names)
    }


def classification_modules(model: nn.Module) -> tuple[str, ...]:
    """The module groups of ``model`` that say what a proposal is.

    Args:
        model: an instrumented detector.
    """
    return model.classification_modules


def proposal_modules(model: nn.Module) -> tuple[str, ...]:
    """The module groups of ``model`` that say that something is there; none without objectness.

    Args:
        model: an instrumented detector.
    """
    return model.proposal_modules


def module_group_parameters(model: nn.Module, modules: list[str]) -> list[str]:
    """Names of the parameters and buffers in ``modules``, in the order of the state dict.

    Raises:
        ValueError: the model has no group of one of these names.
    """
    groups = resettable_modules(model)
    unknown = [module for module in modules if module not in groups]
    if unknown:
        raise ValueError(
            f"no module group {', '.join(unknown)} in this detector; it has {', '.join(groups)}"
        )
    prefixes = tuple(prefix for module in modules for prefix in groups[module])
    return [name for name in model.state_dict() if name.startswith(prefixes)]
