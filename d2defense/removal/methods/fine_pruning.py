# SPDX-License-Identifier: Apache-2.0
"""Fine-pruning: remove channels that clean images leave dormant, then fine-tune."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.engine import HookBase
from torch import Tensor, nn

from d2defense.modeling import classification_modules, resettable_modules
from d2defense.registry import REMOVAL_REGISTRY

from .base import FineTune, RemovalMethod


@REMOVAL_REGISTRY.register("fine_pruning")
class FinePruning(RemovalMethod):
    """Fine-pruning: silence the channels that clean images use least, then fine-tune.

    Liu et al., RAID 2018, arXiv 1805.12185, for two-stage detectors. A backdoor is thought to live
    in channels that clean images do not use. Of the last convolution shared by RPN and box head and
    of the last layer of the box head, the share ``REMOVAL.FINE_PRUNING.RATE`` of channels with the
    smallest mean activation on the defender's set is set to zero, and stays zero while the model is
    fine-tuned. The paper prunes the last convolution of a classifier until its accuracy drops; a
    detector has two places where features end, and the share is fixed.
    """

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Add ``REMOVAL.FINE_PRUNING.*``."""
        # Share of a layer's channels that is pruned.
        node.RATE = 0.2

    def prepare(self, model: nn.Module) -> list[str]:
        """Prune; the names of the layers' tensors are returned."""
        layers = prunable_layers(model)
        dormant = dormant_channels(
            model, layers, _clean_batches(self.cfg), self.cfg.REMOVAL.FINE_PRUNING.RATE
        )
        for name, channels in dormant.items():
            _silence(layers[name], channels)
        return [f"{name}.{key}" for name, layer in layers.items() for key in layer.state_dict()]

    def attach(self, model: nn.Module, fine_tune: FineTune) -> list[HookBase]:
        """A hook that keeps pruned channels at zero: those that are zero when training begins."""
        layers = prunable_layers(model)
        return [_KeepSilent({layer: _silent(layer) for layer in layers.values()})]


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose output channels are pruned, by name in ``model``.

    The output convolutions of an FPN, or the last convolution of another backbone; and the last
    layer of each head that classifies proposals.
    """
    convolutions = _layers(model.backbone, "backbone.", nn.Conv2d)
    pyramid = {name: layer for name, layer in convolutions.items() if ".fpn_output" in name}
    chosen = pyramid or dict([list(convolutions.items())[-1]])
    groups = resettable_modules(model)
    for group in classification_modules(model):
        if group != "box_predictor":
            for prefix in groups[group]:
                head = model.get_submodule(prefix.rstrip("."))
                chosen |= dict([list(_layers(head, prefix, (nn.Conv2d, nn.Linear)).items())[-1]])
    return chosen


@torch.no_grad()
def dormant_channels(
    model: nn.Module,
    layers: dict[str, nn.Module],
    batches: Iterable[list[dict]],
    rate: float,
) -> dict[str, Tensor]:
    """For each layer a bool Tensor (channels,): the least active share of its output channels.

    Activity is the mean of ``relu(output)`` over images, positions and proposals.

    Args:
        model: detector; left in the mode it was in.
        layers: by name.
        batches: of clean inputs.
        rate: share of channels, 0..1, rounded down.
    """
    sums = {name: torch.zeros(len(layer.weight)).double() for name, layer in layers.items()}

    def measure(name: str):
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            if len(output):
                positions = output.relu().double().flatten(2) if output.dim() > 2 else None
                mean = output.relu().double() if positions is None else positions.mean(2)
                sums[name] = sums[name] + mean.sum(0).cpu()

        return hook

    hooks = [layer.register_forward_hook(measure(name)) for name, layer in layers.items()]
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            model(batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    dormant = {}
    for name, activity in sums.items():
        order = activity.argsort()
        dormant[name] = torch.zeros(len(order), dtype=torch.bool)
        dormant[name][order[: int(rate * len(order))]] = True
    return dormant


class _KeepSilent(HookBase):
    """Sets pruned channels back to zero after every step of the optimizer."""

    def __init__(self, dormant: dict[nn.Module, Tensor]) -> None:
        self.dormant = dormant

    def after_step(self) -> None:
        """Called by the trainer."""
        for layer, channels in self.dormant.items():
            _silence(layer, channels)


@torch.no_grad()
def _silence(layer: nn.Module, channels: Tensor) -> None:
    """Zero all that makes the output of these channels, a norm behind the layer included."""
    for module in layer.modules():
        for name in ("weight", "bias"):
            tensor = getattr(module, name, None)
            if tensor is not None:
                tensor[channels.to(tensor.device)] = 0


def _silent(layer: nn.Module) -> Tensor:
    return (layer.weight.flatten(1) == 0).all(dim=1).cpu()


def _layers(module: nn.Module, prefix: str, kind: type | tuple[type, ...]) -> dict[str, nn.Module]:
    return {
        f"{prefix}{name}": layer
        for name, layer in module.named_modules()
        if isinstance(layer, kind)
    }


def _clean_batches(cfg: CfgNode) -> Iterable[list[dict]]:
    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    # One image at a time: more may not fit, and would be padded, which is no activity of theirs.
    return build_detection_test_loader(records, mapper=DatasetMapper(cfg, is_train=False))
