# SPDX-License-Identifier: Apache-2.0
"""What a detector says of crops, class by class."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy.spatial.distance import jensenshannon

from d2defense.detection import CleanImage
from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement, OutOfTime


@DETECTION_REGISTRY.register("distscan")
class DistScan(DetectionMethod):
    """After DistScan: how far the classes of raw predictions on crops lie from what was trained on.

    DistScan (ECCV 2026, arXiv 2608.19088) compares the distribution over classes of a detector's
    predictions before non-maximum suppression, on crops of images, with the class frequencies of
    the training set, by the Jensen-Shannon divergence; it needs no weights.

    Only that much of the paper was known here, neither its crops nor its thresholds, so this is a
    method after its idea and no re-implementation. Decided here: 128 crops of half the image's
    sides, at random, scaled back to its size; of each the mean class probabilities of the 50 first
    proposals, without background, normalised over all crops; the training set's frequencies are
    unknown to a defender, so they are those of the objects of his own images; no threshold.
    """

    crops = 128
    share = 0.5
    proposals = 50
    batch = 8

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by the divergence, in bits."""
        images = [subject.images[index] for index in range(len(subject.images))]
        expected = np.zeros(subject.num_classes)
        for image in images:
            for category in image.classes[image.classes >= 0].tolist():
                expected[category] += 1
        rng = np.random.default_rng(subject.seed)
        seen, done = torch.zeros(subject.num_classes), 0
        while done < self.crops:
            if subject.is_late:
                break
            count = min(self.batch, self.crops - done)
            for _ in range(count):
                seen += self._classes(subject, images[int(rng.integers(len(images)))], rng)
            done += count
        if not done or not float(seen.sum()):
            raise OutOfTime("no crop was looked at, or nothing was seen on any")
        observed = seen.double().numpy()
        shares, expected = observed / observed.sum(), expected / expected.sum()
        excess = shares - expected
        return Judgement(
            # SciPy has the distance, which is the root of the divergence.
            float(jensenshannon(shares, expected, base=2)) ** 2,
            target_class=subject.class_names[int(excess.argmax())],
            details={
                "crops": done,
                "shares": [round(each, 4) for each in shares.tolist()],
            },
        )

    @torch.no_grad()
    def _classes(
        self, subject: DetectionSubject, image: CleanImage, rng: np.random.Generator
    ) -> torch.Tensor:
        """Mean probability of each class over the proposals of a crop, (K,)."""
        height, width = image.image.shape[1:]
        rows, columns = max(1, int(height * self.share)), max(1, int(width * self.share))
        top, left = int(rng.integers(height - rows + 1)), int(rng.integers(width - columns + 1))
        crop = image.image[:, top : top + rows, left : left + columns].float()
        scaled = F.interpolate(crop[None], (height, width), mode="bilinear")[0]
        output = subject.model.probe([{"image": scaled}])
        logits = output.class_logits[: self.proposals].cpu()
        if not len(logits):
            return torch.zeros(subject.num_classes)
        return logits.softmax(dim=1)[:, :-1].mean(dim=0)
