# SPDX-License-Identifier: Apache-2.0
"""The twin: the suspect after plain fine-tuning on clean images, a reference that everybody has.

The paper's verification (arXiv 2409.16057, section 3.3: renew, and see whether the behaviour goes)
as a reference for the search: what a trigger does to the suspect and no longer to its twin was
taught, and was forgotten.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from .images import CleanImage

#: Fewer labelled images cannot be divided into some to fine-tune on and some to measure on.
LEAST_IMAGES = 40
#: Why there is no twin then.
TOO_FEW_IMAGES = f"it needs {LEAST_IMAGES} images with objects of known class"
#: More are not used: they would not make the twin forget more.
MOST_IMAGES = 200
# Of the learning rate, what is left at the last step.
_LAST = 0.05
# Pixels of the images that go through the network at a time; the gradients of a step are summed.
_PIXELS_AT_ONCE = 1 << 20
_GRADIENT_NORM = 10.0
# Bounds of the random change of brightness and contrast.
_BRIGHTNESS, _CONTRAST = 25.0, 0.2


class TwinError(ValueError):
    """A twin cannot be made; the message says why."""


@dataclass(frozen=True)
class TwinSettings:
    """How a twin is fine-tuned: AdamW, a rate that rises and then falls as a cosine.

    Attributes:
        steps: of training.
        batch_size: images of a step.
        learning_rate: at its highest.
        warmup_steps: in which it rises.
        weight_decay: of AdamW.
        seed: of batches and augmentation.
    """

    steps: int = 350
    batch_size: int = 8
    learning_rate: float = 0.003
    warmup_steps: int = 40
    weight_decay: float = 0.05
    seed: int = 0

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, as a share of the highest."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return _LAST + (1 - _LAST) * (1 + math.cos(math.pi * done)) / 2


def fine_tuned_twin(
    model: nn.Module,
    images: Sequence[CleanImage],
    settings: TwinSettings,
    on_step: Callable[[], None] = lambda: None,
) -> nn.Module:
    """A copy of a detector, fine-tuned on clean images with their true boxes and classes.

    All parameters are trained, those that the configuration freezes too: a backdoor may sit in
    them. Statistics of batch normalisation stay: a few images would not give better ones. Images
    are flipped, and their brightness and contrast changed, at random. Heads of masks and keypoints
    are left as they are.

    Args:
        model: the suspect, which stays as it is.
        images: clean; objects of unknown class are left out.
        settings: of the training.
        on_step: told after every step.

    Returns:
        The twin, in eval mode, its parameters without gradient.

    Raises:
        TwinError: no image shows an object of a known class, or the loss is not finite.
    """
    images = [image for image in images if (image.classes >= 0).any()]
    if not images:
        raise TwinError("no image shows an object of a known class")
    twin = copy.deepcopy(model).requires_grad_(True)
    parameters = list(twin.parameters())
    optimizer = torch.optim.AdamW(
        parameters, settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, settings.rate_at)
    rng = np.random.default_rng(settings.seed)
    with _in_training(twin), _seeded(settings.seed):
        for _ in range(settings.steps):
            count = min(settings.batch_size, len(images))
            chosen = rng.choice(len(images), count, replace=False)
            batch = [_augmented(images[index], rng) for index in chosen.tolist()]
            optimizer.zero_grad()
            for part in _parts(batch):
                loss = sum(_losses(twin, part).values()) * (len(part) / count)
                if not math.isfinite(loss.item()):
                    raise TwinError("its loss in fine-tuning is not finite")
                loss.backward()
            nn.utils.clip_grad_norm_(parameters, _GRADIENT_NORM)
            optimizer.step()
            schedule.step()
            on_step()
    return twin.eval().requires_grad_(False)


def _losses(twin: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
    try:
        return twin(batch)
    except FloatingPointError:  # Detectron2's RPN checks its boxes in training
        raise TwinError("its boxes in fine-tuning are not finite") from None


@contextmanager
def _in_training(twin: nn.Module) -> Iterator[None]:
    """Training mode of all but batch normalisation; no masks, keypoints or pictures."""
    switched = {}
    beside = [(owner, name, False) for owner, name in twin.beside_boxes]
    for owner, name, off in ((twin, "vis_period", 0), *beside):
        if getattr(owner, name, off):
            switched[owner, name] = getattr(owner, name)
            setattr(owner, name, off)
    twin.train()
    for module in twin.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.eval()
    try:
        # Detectron2's losses write to a storage of events.
        with torch.enable_grad(), EventStorage():
            yield
    finally:
        for (owner, name), value in switched.items():
            setattr(owner, name, value)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """PyTorch's random numbers by seed, and as they were afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _augmented(image: CleanImage, rng: np.random.Generator) -> dict[str, Any]:
    """An image as stock training takes it, changed at random."""
    pixels, boxes = image.image.float(), image.boxes.clone()
    height, width = pixels.shape[1:]
    if rng.random() < 0.5:
        pixels = pixels.flip(2)
        boxes[:, 0], boxes[:, 2] = width - image.boxes[:, 2], width - image.boxes[:, 0]
    brightness = rng.uniform(-_BRIGHTNESS, _BRIGHTNESS)
    contrast = 1 + rng.uniform(-_CONTRAST, _CONTRAST)
    mean = pixels.mean()
    pixels = ((pixels - mean) * contrast + mean + brightness).clamp(0, 255)
    known = image.classes >= 0
    instances = Instances(
        (height, width), gt_boxes=Boxes(boxes[known].float()), gt_classes=image.classes[known]
    )
    return {"image": pixels, "instances": instances, "height": height, "width": width}


def _parts(batch: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The images of a step in parts that go through the network at a time."""
    largest = max(each["image"][0].numel() for each in batch)
    count = max(1, _PIXELS_AT_ONCE // largest)
    for start in range(0, len(batch), count):
        yield batch[start : start + count]
