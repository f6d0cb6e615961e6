# SPDX-License-Identifier: Apache-2.0
"""Maximum margins of the box predictor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.special import gammaincc
from torch import Tensor, nn

from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement, OutOfTime

# Fits of the gamma distribution need a little spread.
_TINY = 1e-9


@DETECTION_REGISTRY.register("mm_bd")
class MaximumMargin(DetectionMethod):
    """MM-BD: one class whose logit can be driven far above all others.

    "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern Types Using
    a Maximum Margin Statistic" (IEEE S&P 2024, section 4; ``univ_bd.py`` of its code): for each
    class, the largest margin of its logit over all others that gradient ascent reaches from 30
    random inputs (300 steps of SGD, rate 0.01, momentum 0.2); the largest over classes is held
    against a gamma distribution that is fitted to the others', and a p-value of the maximum below
    0.05 is an alarm.

    Decided here: a detector has no image-wide logits, so the input is what its box predictor gets,
    and the box of admissible inputs, which the paper has as pixels from 0 to 1, is the range of
    each feature over proposals of clean images. Features are scaled to that range, so that the
    paper's rate has a meaning. Background is among the others of a margin and no class that is
    judged: with clean detectors, too, its own margin is four times that of any other, so that the
    method cannot see disappearance. With seven classes the fit rests on six numbers.
    """

    starts = 30
    steps = 300
    rate = 0.01
    momentum = 0.2
    significance = 0.05
    images = 10

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by minus the logarithm of the p-value."""
        heads = subject.model.roi_heads
        ranges = self._ranges(subject)
        generator = torch.Generator().manual_seed(subject.seed)
        starts = [
            torch.rand((self.starts, *low.shape), generator=generator).to(low) for low, _ in ranges
        ]
        margins = []
        for wanted in range(subject.num_classes):
            if subject.is_late:
                raise OutOfTime(f"{wanted} of {subject.num_classes} classes were done")
            margins.append(self._margin(heads, ranges, starts, wanted))
        order = int(np.argmax(margins))
        others = np.delete(np.array(margins), order)
        p_value = _p_value(margins[order], others)
        return Judgement(
            -float(np.log10(max(p_value, 1e-300))),
            is_alarm=p_value < self.significance,
            target_class=subject.class_names[order],
            details={"margins": [round(each, 4) for each in margins], "p_value": p_value},
        )

    def _ranges(self, subject: DetectionSubject) -> list[tuple[Tensor, Tensor]]:
        """Least and largest value of each feature that the box predictor gets."""
        seen: list[Sequence[Tensor]] = []
        hook = _predictor(subject.model.roi_heads).register_forward_pre_hook(
            lambda module, inputs: seen.append([each.detach() for each in _parts(inputs)])
        )
        try:
            for index in range(min(self.images, len(subject.images))):
                subject.model.probe([{"image": subject.images[index].image}])
        finally:
            hook.remove()
        joined = [torch.cat(parts) for parts in zip(*seen, strict=True)]
        return [(each.amin(0), each.amax(0)) for each in joined]

    def _margin(
        self,
        heads: nn.Module,
        ranges: Sequence[tuple[Tensor, Tensor]],
        starts: Sequence[Tensor],
        wanted: int,
    ) -> float:
        """The largest margin of a class over all others that is reached."""
        shares = [start.clone().requires_grad_() for start in starts]
        optimizer = torch.optim.SGD(shares, lr=self.rate, momentum=self.momentum)
        predictor = _predictor(heads)
        best = -np.inf
        for _ in range(self.steps):
            inputs = [
                low + share.clamp(0, 1) * (high - low)
                for share, (low, high) in zip(shares, ranges, strict=True)
            ]
            with heads.recorded_logits() as logits:
                predictor(*inputs if len(inputs) == 1 else [tuple(inputs)])
            margin = _margins(logits[-1], wanted)
            best = max(best, float(margin.detach().max()))
            optimizer.zero_grad()
            (-margin.sum()).backward()
            optimizer.step()
            with torch.no_grad():
                for share in shares:
                    share.clamp_(0, 1)
        return best


def _predictor(heads: nn.Module) -> nn.Module:
    """The classifier that counts."""
    predictor = heads.box_predictor
    return predictor[-1] if isinstance(predictor, nn.ModuleList) else predictor


def _parts(inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The features that a predictor gets: one Tensor, or those of Double-Head's two heads."""
    return inputs[0] if isinstance(inputs[0], tuple) else inputs


def _margins(logits: Tensor, wanted: int) -> Tensor:
    """Of one class over the best other, from (N, K + 1) to (N,)."""
    others = torch.cat([logits[:, :wanted], logits[:, wanted + 1 :]], dim=1)
    return logits[:, wanted] - others.amax(dim=1)


def _p_value(largest: float, others: np.ndarray) -> float:
    """Probability that the largest of as many draws, and one, of the others' gamma is larger.

    The gamma distribution by its moments, after a shift that makes all margins positive.
    """
    shift = min(0.0, float(others.min())) - _TINY
    values = others - shift
    mean, variance = values.mean(), max(values.var(ddof=1), _TINY)
    shape, scale = mean**2 / variance, variance / mean
    above = gammaincc(shape, (largest - shift) / scale)
    # 1 - (1 - above) ** n, also where that is too near to 0 to be told from it.
    return float(-np.expm1((len(others) + 1) * np.log1p(-above)))
