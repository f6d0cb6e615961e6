# SPDX-License-Identifier: Apache-2.0
"""The twin: the suspect after plain fine-tuning on clean images, its own reference.

The paper's verification (arXiv 2409.16057, section 3.3: renew, and see whether the behaviour goes)
as a reference for the search: what a trigger does to the suspect and no longer to its twin was
taught, and was forgotten.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

from .images import CleanImage

# A twin sees too little of each class on fewer.
LEAST_IMAGES = 20
# Of the learning rate at the first step, what is left at the last.
_LAST = 0.05


def fine_tuned_twin(
    model: nn.Module,
    images: Sequence[CleanImage],
    steps: int,
    seed: int = 0,
    batch_size: int = 8,
    learning_rate: float = 0.01,
    on_step: Callable[[], None] = lambda: None,
) -> nn.Module:
    """A copy of a detector, fine-tuned on clean images with their true boxes and classes.

    All parameters that the detector trains are, by SGD with a falling rate; images are flipped at
    random. Masks and keypoints are left as they are.

    Args:
        model: the suspect, which stays as it is.
        images: clean; objects of unknown class are left out.
        steps: of training.
        seed: of batches and flips.
        batch_size: images of a step.
        learning_rate: at the first step.
        on_step: told after every step.

    Returns:
        The twin, in eval mode.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    twin = copy.deepcopy(model)
    heads = twin.roi_heads
    for name in ("mask_on", "keypoint_on"):
        if getattr(heads, name, False):
            setattr(heads, name, False)
    twin.train()
    parameters = [each for each in twin.parameters() if each.requires_grad]
    optimizer = torch.optim.SGD(parameters, learning_rate, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _LAST + (1 - _LAST) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    rng = np.random.default_rng(seed)
    # Detectron2's losses write to a storage of events.
    with torch.random.fork_rng(), torch.enable_grad(), EventStorage():
        torch.manual_seed(seed)
        for _ in range(steps):
            chosen = rng.choice(len(images), min(batch_size, len(images)), replace=False)
            batch = [_labelled(images[index], rng.random() < 0.5) for index in chosen.tolist()]
            loss = sum(twin(batch).values())
            if not torch.isfinite(loss):
                raise FloatingPointError("the twin's loss is not finite")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 10.0)
            optimizer.step()
            schedule.step()
            on_step()
    for name in ("mask_on", "keypoint_on"):
        if getattr(model.roi_heads, name, False):
            setattr(heads, name, True)
    return twin.eval()


def _labelled(image: CleanImage, flip: bool) -> dict:
    """An image as stock training takes it."""
    pixels, boxes = image.image, image.boxes.clone()
    height, width = pixels.shape[1:]
    if flip:
        pixels = pixels.flip(2)
        boxes[:, 0], boxes[:, 2] = width - image.boxes[:, 2], width - image.boxes[:, 0]
    known = image.classes >= 0
    instances = Instances(
        (height, width), gt_boxes=Boxes(boxes[known].float()), gt_classes=image.classes[known]
    )
    return {"image": pixels, "instances": instances, "height": height, "width": width}
