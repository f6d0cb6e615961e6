# SPDX-License-Identifier: Apache-2.0
"""Neural Cleanse, on detectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d2defense.detection import CleanImage
from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement, OutOfTime
from .stamps import blend, objects_of

# Median absolute deviation to standard deviation of a normal population.
_CONSISTENCY = 1.4826


@DETECTION_REGISTRY.register("neural_cleanse")
class NeuralCleanse(DetectionMethod):
    """Neural Cleanse: one class that a far smaller mask reaches than it takes for the others.

    "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks" (IEEE S&P 2019,
    section IV): for each class, mask and pattern are optimised to turn everything into it, with the
    L1 norm of the mask as a cost whose weight is doubled while the attack succeeds (0.9) and
    divided by 2 ** 1.5 while it does not, with a patience of 5; a class whose norm lies more than
    2 median absolute deviations below the median is an alarm.

    Decided here, with ODSCAN's adaptation (``adapted_nc_pixel`` of ``Megum1/ODSCAN``: Adam 0.1,
    betas 0.5 and 0.9, cost 1e-3, background among the classes, 10 images) as the guide: mask and
    pattern lie over each object's box and are scaled to it, since a universal mask over the image
    would not lie on objects; all other classes are victims together, not pair by pair, which is
    what took 50 hours a model there; 100 steps instead of 1000, and what is judged is the object's
    own box. The score is the anomaly index, signed, so that a large mask is no suspicion.
    """

    steps = 100
    images = 10
    side = 32
    rate = 0.1
    cost = 1e-3
    wanted_rate = 0.9
    patience = 5
    index = 2.0

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by the anomaly index of the smallest mask."""
        images = [subject.images[index] for index in range(min(self.images, len(subject.images)))]
        norms = []
        for wanted in range(subject.num_classes + 1):
            if subject.is_late:
                raise OutOfTime(f"{wanted} of {subject.num_classes + 1} classes were done")
            victims = objects_of(images, but=wanted)
            norms.append(self._norm(subject, victims, wanted) if victims else float("nan"))
        known = np.array([norm for norm in norms if np.isfinite(norm)])
        if len(known) < 3:
            raise RuntimeError("fewer than three classes have victims on the images")
        median = np.median(known)
        spread = max(_CONSISTENCY * np.median(np.abs(known - median)), 1e-9)
        smallest = int(np.nanargmin(norms))
        score = float((median - norms[smallest]) / spread)
        is_background = smallest == subject.num_classes
        return Judgement(
            score,
            is_alarm=score > self.index,
            effect="disappearance" if is_background else "misclassification",
            target_class="" if is_background else subject.class_names[smallest],
            details={"norms": [None if norm != norm else round(norm, 3) for norm in norms]},
        )

    def _norm(
        self, subject: DetectionSubject, victims: Sequence[tuple[CleanImage, Tensor]], wanted: int
    ) -> float:
        """L1 norm of the smallest mask that succeeds, of ``side ** 2``; all of it if none does."""
        generator = torch.Generator().manual_seed(subject.seed)
        device = subject.model.device
        shape = (1, self.side, self.side)
        mask_raw = torch.randn(shape, generator=generator).to(device).requires_grad_()
        shape = (3, self.side, self.side)
        pattern_raw = torch.randn(shape, generator=generator).to(device).requires_grad_()
        optimizer = torch.optim.Adam([mask_raw, pattern_raw], lr=self.rate, betas=(0.5, 0.9))
        images, boxes = [each.image.to(device) for each, _ in victims], [box for _, box in victims]
        best, cost, above, below = float(self.side**2), self.cost, 0, 0
        for _ in range(self.steps):
            if subject.is_late:
                break
            mask, pattern = (mask_raw.tanh() + 1) / 2, (pattern_raw.tanh() + 1) * 127.5
            output = subject.model.judge(blend(images, boxes, mask, pattern), boxes)
            logits = output.class_logits
            targets = torch.full((len(logits),), wanted, device=device)
            loss = F.cross_entropy(logits, targets) + cost * mask.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate = float((logits.detach().argmax(dim=1) == wanted).float().mean())
            norm = float(mask.detach().sum())
            if rate >= self.wanted_rate:
                best, above, below = min(best, norm), above + 1, 0
            else:
                above, below = 0, below + 1
            if above >= self.patience:
                cost, above = cost * 2, 0
            elif below >= self.patience:
                cost, below = cost / 2**1.5, 0
        return best
