# SPDX-License-Identifier: Apache-2.0
"""Training inputs with something on them that is to change nothing of what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from torch import Tensor

from d2defense.detection import CleanImage
from d2defense.registry import PLACEMENT_REGISTRY
from d2defense.triggers import Trigger

from .patches import PatchAugmentation

# Share of an image's places that bear a trigger.
_PLACE_SHARE = 0.7


def patched(image: dict[str, Any], patches: PatchAugmentation, cfg: CfgNode) -> dict[str, Any]:
    """A training input with patches on it, on objects and where nothing is; its labels stay.

    Args:
        image: as it was read.
        patches: that are drawn, from NumPy's global generator.
        cfg: of the fine-tuning run.
    """
    rng = np.random.default_rng(np.random.randint(2**31))
    # Where there is nothing, too: a ghost's trigger is no object.
    windows = background_windows(cfg, image, rng)
    boxes = [*image["instances"].gt_boxes.tensor.tolist(), *windows.tolist()]
    bearers = [{"bbox": box, "bbox_mode": BoxMode.XYXY_ABS} for box in boxes]
    pixels = image["image"].permute(1, 2, 0).numpy()
    for stamp in patches.stamps(bearers, cfg.INPUT.FORMAT):
        pixels = stamp.apply_image(pixels)
    return {**image, "image": torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))}


def some_of(places: Tensor, rng: np.random.Generator) -> Tensor:
    """Some of the places, (P, 4), and all of them where none was drawn."""
    kept = torch.from_numpy(rng.random(len(places)) < _PLACE_SHARE)
    return places[kept] if kept.any() else places


@torch.no_grad()
def stamped(
    image: dict[str, Any],
    clean: CleanImage,
    trigger: Trigger,
    places: Tensor,
    image_format: str,
    tensors: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """A training input with a trigger on it; its labels stay as they are.

    Args:
        image: as it was read.
        clean: the same.
        trigger: any family's.
        places: float Tensor of shape (P, 4), XYXY in pixels of the input.
        image_format: order of the channels, "BGR" or "RGB".
        tensors: of the trigger, in place of its own.
    """
    size = (int(clean.image.shape[1]), int(clean.image.shape[2]))
    pixels = trigger.apply(
        clean.image[None].float(), [size], [places], [clean.seed], image_format, tensors
    )
    return {**image, "image": pixels[0].round().clamp(0, 255).to(image["image"].dtype)}


def clean_image(image: dict[str, Any], seed: int) -> CleanImage:
    """A training input as a search takes images."""
    instances = image["instances"]
    return CleanImage(
        file_name=image.get("file_name", ""),
        image=image["image"],
        boxes=instances.gt_boxes.tensor,
        classes=instances.gt_classes,
        seed=seed,
    )


def background_windows(cfg: CfgNode, image: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Some windows of a training input that touch no object, float (P, 4), XYXY in pixels."""
    boxes = image["instances"].gt_boxes.tensor.double().numpy()
    size = (int(image["image"].shape[1]), int(image["image"].shape[2]))
    background = PLACEMENT_REGISTRY.get("background")(cfg)
    return background.places(np.zeros((0, 4)), boxes, size, rng)
