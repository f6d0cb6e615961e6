# SPDX-License-Identifier: Apache-2.0
"""What a removal method does before, around and in the steps of fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from torch import Tensor, nn

from d2defense.modeling import module_group_parameters

#: Fine-tunes by another configuration, in that one's output folder.
FineTune = Callable[[CfgNode], None]


class RemovalMethod:
    """A way to remove a backdoor by fine-tuning, by the name that ``REMOVAL.METHOD`` gives.

    This class fine-tunes and does nothing else; subclasses override what they need.

    Args:
        cfg: configuration of the fine-tuning run.
    """

    #: Whether it resets the module groups that ``REMOVAL.MODULES``, or a scan, names.
    resets_modules: ClassVar[bool] = False
    #: Whether steps of fine-tuning follow :meth:`prepare`.
    fine_tunes: ClassVar[bool] = True

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Put the method's own keys with their defaults into ``REMOVAL.<NAME>``, which is empty."""

    @staticmethod
    def change_schedule(cfg: CfgNode, num_images: int) -> None:
        """Change ``SOLVER``, which holds ``REMOVAL.SOLVER``, where the method needs another one.

        Args:
            cfg: of the fine-tuning run.
            num_images: to learn from.
        """

    def modules(self, model: nn.Module) -> tuple[str, ...]:
        """Module groups of ``model`` that are reset, for reports."""
        return ()

    def reset_tensors(self, model: nn.Module) -> list[str]:
        """Names of the tensors of ``model`` that are reset, and so learn at their own rate."""
        return module_group_parameters(model, list(self.modules(model)))

    def prepare(self, model: nn.Module) -> list[str]:
        """Change ``model``, which holds the checkpoint's weights, before the first step.

        Returns:
            names of the tensors that were changed.
        """
        return []

    def attach(self, model: nn.Module, fine_tune: FineTune) -> list[HookBase]:
        """Get ready for the first step, after :meth:`prepare` or in a run that is resumed.

        Args:
            model: the detector that is trained.
            fine_tune: fine-tunes another one first, such as a teacher; its weights are then
                ``model_final.pth`` of its output folder.

        Returns:
            hooks of the fine-tuning.
        """
        return []

    def mapper(self, augmentations: Sequence[T.Augmentation]) -> DatasetMapper:
        """From dataset dicts of the defender's set to training input.

        Args:
            augmentations: of the fine-tuning, the same with every method.
        """
        return DatasetMapper(self.cfg, is_train=True, augmentations=list(augmentations))

    def losses(self, model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        """What a step descends: the sum of these losses.

        Args:
            model: the detector that is trained, in training mode.
            batch: training input, a dict an image.

        Returns:
            scalars by the names under which ``metrics.json`` has them.
        """
        return model(batch)
