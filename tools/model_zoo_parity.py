# SPDX-License-Identifier: Apache-2.0
"""Are instrumented detectors the stock ones? check_model_zoo.py asks it of the model zoo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2 import model_zoo
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import Tensor, nn

from d2defense.config import get_d2defense_cfg
from d2defense.modeling import UnsupportedArchitectureError, instrument_config
from d2defense.modeling.sigmoid_scores import softmax_logits

# Folders of the model zoo with detectors.
FAMILIES = (
    "COCO-Detection",
    "COCO-InstanceSegmentation",
    "COCO-Keypoints",
    "COCO-PanopticSegmentation",
    "LVISv0.5-InstanceSegmentation",
    "LVISv1-InstanceSegmentation",
    "Cityscapes",
    "PascalVOC-Detection",
    "Misc",
)
IMAGE_SIZES = ((96, 128), (80, 112))
EQUAL, DIFFERENT, REFUSED, SKIPPED = "equal", "different", "refused", "skipped"


@dataclass(frozen=True)
class Parity:
    """How an instrumented detector compares with the stock one of the same random weights.

    Attributes:
        config: name of the model zoo's config.
        outcome: "equal", "different", "refused" (not a detector that can be probed) or "skipped"
            (Detectron2 cannot build it here).
        detail: what differs, or why it was refused or skipped.
        roi_heads: the kind of ROI heads; of a one-stage detector its meta-architecture.
        parameters: how many the model has.
        detections: how many were compared bit by bit.
        proposals: how many were compared bit by bit.
    """

    config: str
    outcome: str
    detail: str = ""
    roi_heads: str = ""
    parameters: int = 0
    detections: int = 0
    proposals: int = 0


def model_zoo_configs(families: tuple[str, ...] = FAMILIES) -> list[str]:
    """Names of the model zoo's configs in these folders, bases left out."""
    root = Path(model_zoo.get_config_file("Misc/semantic_R_50_FPN_1x.yaml")).parents[1]
    return [
        path.relative_to(root).as_posix()
        for family in families
        for path in sorted((root / family).glob("*.yaml"))
        if not path.name.startswith("Base-")
    ]


def check_model_zoo(configs: list[str]) -> Iterator[Parity]:
    """Compare one config after another; see :func:`check_config`."""
    for config in configs:
        yield check_config(config)


def check_config(name: str) -> Parity:
    """Build a config of the model zoo twice, stock and instrumented, and compare what they say.

    Both get the same random weights. Compared are the keys of the state dicts, the detections of
    a batch of two images of different sizes, and the probe's boxes and logits with what the stock
    model's own RPN and classifiers put out while it detects: all of it bit by bit.
    """
    cfg = get_d2defense_cfg()
    # The installed zoo is trusted, and some of its files hold Python expressions.
    cfg.merge_from_file(model_zoo.get_config_file(name))
    _shrink(cfg)
    try:
        instrumented_cfg = instrument_config(cfg)
    except UnsupportedArchitectureError as error:
        return Parity(name, REFUSED, str(error))
    torch.manual_seed(0)
    try:
        stock = build_model(cfg).eval()
    except Exception as error:  # Detectron2 says in many ways that it lacks a compiled part
        return Parity(name, SKIPPED, " ".join(f"{type(error).__name__}: {error}".split()))
    instrumented = build_model(instrumented_cfg).eval()
    two_stages = instrumented.has_objectness
    roi_heads = cfg.MODEL.ROI_HEADS.NAME if two_stages else cfg.MODEL.META_ARCHITECTURE
    parameters = sum(p.numel() for p in stock.parameters())
    if list(stock.state_dict()) != list(instrumented.state_dict()):
        return Parity(name, DIFFERENT, "keys of the state dict", roi_heads, parameters)
    spread_scores(stock)
    instrumented.load_state_dict(stock.state_dict())
    difference, detections, proposals = compare(stock, instrumented, random_images())
    outcome = DIFFERENT if difference else EQUAL
    return Parity(name, outcome, difference, roi_heads, parameters, detections, proposals)


def compare(
    stock: nn.Module, instrumented: nn.Module, batch: list[dict[str, Any]]
) -> tuple[str, int, int]:
    """What differs between two detectors of the same weights; nothing, if all is well.

    Args:
        stock: in eval mode.
        instrumented: in eval mode.
        batch: input of both.

    Returns:
        what differs ("" for nothing), the number of detections, the number of proposals compared.
    """
    if not instrumented.has_objectness:
        return _compare_dense(stock, instrumented, batch)
    with torch.no_grad(), _Recorder(stock) as recorded:
        expected = [output["instances"] for output in stock(batch)]
        got = [output["instances"] for output in instrumented(batch)]
    detections = sum(map(len, expected))
    probe = instrumented.probe(batch)
    with_detections = instrumented.probe(batch, with_detections=True)
    boxes = torch.cat([p.proposal_boxes.tensor for p in recorded.proposals])
    objectness = torch.cat([p.objectness_logits for p in recorded.proposals])
    checks = {
        "detections": all(map(_same_instances, expected, got)),
        "proposal boxes": torch.equal(probe.proposal_boxes, boxes),
        "objectness logits": torch.equal(probe.objectness_logits, objectness),
        "class logits": _same_tensors(probe.classifier_logits, recorded.class_logits),
        "class logits beside detections": _same_tensors(
            with_detections.classifier_logits, recorded.class_logits
        ),
    }
    differing = [what for what, same in checks.items() if not same]
    return ", ".join(differing), detections, len(boxes)


def _compare_dense(
    stock: nn.Module, instrumented: nn.Module, batch: list[dict[str, Any]]
) -> tuple[str, int, int]:
    """Likewise of detectors of one stage: each proposal must have the scores of an anchor."""
    heads: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: tuple) -> None:
        levels = [
            level.unflatten(1, (-1, stock.num_classes)).permute(0, 3, 4, 1, 2).flatten(1, 3)
            for level in output[0]
        ]
        heads.append(softmax_logits(torch.cat(levels, dim=1).float().sigmoid().log()))

    hook = stock.head.register_forward_hook(keep)
    with torch.no_grad():
        expected = [output["instances"] for output in stock(batch)]
        got = [output["instances"] for output in instrumented(batch)]
    hook.remove()
    probe = instrumented.probe(batch)
    of_anchors = [
        all(torch.isclose(row, anchors, rtol=1e-4, atol=1e-4).all(dim=1).any() for row in rows)
        for anchors, rows in zip(heads[0], (p.class_logits for p in probe.split()), strict=True)
    ]
    checks = {
        "detections": all(map(_same_instances, expected, got)),
        "class logits": all(of_anchors),
    }
    differing = [what for what, same in checks.items() if not same]
    return ", ".join(differing), sum(map(len, expected)), len(probe.proposal_boxes)


def spread_scores(model: nn.Module) -> None:
    """Give random weights that tell proposals apart, in place: fresh ones hardly do."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            # Without trained statistics, each residual block would double the variance.
            if name.endswith("conv3.norm.weight"):
                tensor.fill_(0.2)
            elif name.endswith(("cls_score.weight", "objectness_logits.weight")):
                tensor.copy_(torch.empty(tensor.shape).normal_(0, 0.3, generator=generator))


def random_images(sizes: tuple[tuple[int, int], ...] = IMAGE_SIZES) -> list[dict[str, Any]]:
    """A batch of random images of these (height, width), to be resized back to twice the size."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "image": torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8),
            "height": 2 * h,
            "width": 2 * w,
        }
        for h, w in sizes
    ]


class _Recorder:
    """Keeps what a stock model's RPN and classifiers put out during one forward pass."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.proposals: list[Instances] = []
        self.class_logits: list[Tensor] = []

    def __enter__(self) -> _Recorder:
        def keep_proposals(module: nn.Module, inputs: object, output: tuple) -> None:
            self.proposals.extend(output[0])

        def keep_logits(module: nn.Module, inputs: object, output: Tensor) -> None:
            self.class_logits.append(output)

        self._hooks = [self.model.proposal_generator.register_forward_hook(keep_proposals)]
        for name, module in self.model.roi_heads.named_modules():
            if name.endswith("cls_score"):
                self._hooks.append(module.register_forward_hook(keep_logits))
        return self

    def __exit__(self, *exception: object) -> None:
        for hook in self._hooks:
            hook.remove()


def _shrink(cfg: CfgNode) -> None:
    """Random weights, few proposals and detections; the network itself stays as it is."""
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PIXEL_STD = [57.375, 57.120, 58.395]
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
    cfg.TEST.DETECTIONS_PER_IMAGE = 5


def _same_tensors(ours: tuple[Tensor, ...], theirs: list[Tensor]) -> bool:
    return len(ours) == len(theirs) and all(map(torch.equal, ours, theirs))


def _same_instances(one: Instances, other: Instances) -> bool:
    fields, others = one.get_fields(), other.get_fields()
    return fields.keys() == others.keys() and all(
        torch.equal(getattr(value, "tensor", value), getattr(others[name], "tensor", others[name]))
        for name, value in fields.items()
    )
