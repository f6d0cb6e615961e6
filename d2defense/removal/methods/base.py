# SPDX-License-Identifier: Apache-2.0
"""What a removal method does around fine-tuning."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils.registry import Registry
from torch import nn

from d2defense.modeling import module_group_parameters

if TYPE_CHECKING:
    from ..trainer import RenewalTrainer

REMOVAL_REGISTRY = Registry("REMOVAL")
REMOVAL_REGISTRY.__doc__ = """
Removal methods, by the name that ``REMOVAL.METHOD`` gives. A registered object is called with the
configuration and has the interface of :class:`RemovalMethod`.
"""


class RemovalMethod:
    """Fine-tuning on the defender's set, and what happens before and during it.

    This class does nothing of its own; subclasses override what they need.

    Args:
        cfg: configuration of the fine-tuning run.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    def modules(self, model: nn.Module) -> tuple[str, ...]:
        """Module groups of ``model`` that are reset, for reports."""
        return ()

    def renewed_tensors(self, model: nn.Module) -> list[str]:
        """Names of the tensors of ``model`` that are reset, and so learn at their own rate."""
        return module_group_parameters(model, list(self.modules(model)))

    def prepare(self, model: nn.Module) -> list[str]:
        """Change ``model``, which holds the checkpoint's weights, before the first step.

        Returns:
            names of the tensors that were changed.
        """
        return []

    def attach(self, trainer: RenewalTrainer) -> list[HookBase]:
        """Hooks of the fine-tuning; called once, after :meth:`prepare` or a resumed run."""
        return []


def registered(name: str) -> Callable[[type[RemovalMethod]], type[RemovalMethod]]:
    """Class decorator that registers a method by the name that configs use."""

    def register(method: type[RemovalMethod]) -> type[RemovalMethod]:
        # The registry itself takes the name from the class or function it is given.
        REMOVAL_REGISTRY._do_register(name, method)
        return method

    return register
