# SPDX-License-Identifier: Apache-2.0
"""ODSCAN, as its paper has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

from d2defense.detection import CleanImage
from d2defense.registry import DETECTION_REGISTRY

from .base import DetectionMethod, DetectionSubject, Judgement, OutOfTime
from .stamps import blend, centred, objects_of

# Half-planes are soft over some tenth of the patch.
_GAMMA = 10.0
# Corners of the polygon at the start, and how far they are off the rim at random.
_RIM, _JITTER = 0.0, 0.01


@dataclass(frozen=True)
class _Pair:
    """A victim class and a target class; K is background.

    Attributes:
        effect: that the pair is of.
        victim: class.
        target: class.
        lean: mean probability of the target under random patches.
    """

    effect: str
    victim: int
    target: int
    lean: float


@dataclass(frozen=True)
class _Inverted:
    """What an inverted trigger reaches: ``asr`` and mean target ``confidence``, both 0..1."""

    pair: _Pair
    asr: float
    confidence: float


@DETECTION_REGISTRY.register("odscan")
class Odscan(DetectionMethod):
    """ODSCAN: triggers inverted for the likeliest pairs of victim and target class.

    "ODSCAN: Backdoor Scanning for Object Detection Models" (IEEE S&P 2024, section 5). Random
    patches on objects of each class rank the pairs by the mean probability of the target class
    (30 a class), and the first five of each effect go on. For each, a patch of 6 % of the image's
    width is optimised: its pattern, and a mask that is the product of four soft half-planes (8
    parameters; ``tanh(10 v) / 2 + 0.5``) and a free mask. 20 steps of cross entropy to the target
    over the boxes of the victim, less that over all others; then 10 with each box weighted by its
    confidence in the target (dynamic box selection). Adam, rate 0.1, betas 0.5 and 0.9, 5 images.
    A pair with an ASR of 0.6 and a mean target confidence of 0.8 is an alarm. Background is a class
    among others: evasion is victim to background, injection background to target. Localization is
    left out, as no attack of the zoos has it. The public code differs from the paper (no evasion,
    other thresholds, a weight without effect); here it is the paper's.

    Decided here: a two-stage detector emits as many boxes as it has proposals, so the boxes are the
    RPN's proposals under the trigger as it is, 64 an image, and the victim's own box; they are
    judged again with gradient. For injection the victim is a window of the background of the
    objects' mean size, with the patch in its middle. Losses are means, so that five images weigh as
    one. The score is the smaller of ASR / 0.6 and confidence / 0.8 of the best pair: an alarm from
    1 on.
    """

    samples = 30
    pairs = 5
    size = 0.06
    side = 16
    images = 5
    warm_up = 20
    selection = 10
    rate = 0.1
    boxes = 64
    asr_threshold = 0.6
    confidence_threshold = 0.8
    output_score = 0.05
    effects: ClassVar[tuple[str, ...]] = ("misclassification", "disappearance", "ghost")

    def judge(self, subject: DetectionSubject) -> Judgement:
        """Score by the pair that comes nearest to both thresholds."""
        generator = torch.Generator().manual_seed(subject.seed)
        images = [subject.images[index] for index in range(len(subject.images))]
        places = self._places(subject, images, generator)
        chosen = self._chosen_pairs(subject, places, generator)
        done = []
        for pair in chosen:
            if subject.is_late:
                break
            done.append(self._invert(subject, pair, places, generator))
        if not done:
            raise OutOfTime("no pair was inverted")

        def strength(each: _Inverted) -> float:
            return min(each.asr / self.asr_threshold, each.confidence / self.confidence_threshold)

        best = max(done, key=strength)
        names = (*subject.class_names, "background")
        is_ghost_or_class = best.pair.target < subject.num_classes
        return Judgement(
            strength(best),
            is_alarm=strength(best) >= 1,
            effect=best.pair.effect,
            target_class=names[best.pair.target] if is_ghost_or_class else "",
            details={
                "pair": f"{names[best.pair.victim]} to {names[best.pair.target]}",
                "asr": round(best.asr, 4),
                "confidence": round(best.confidence, 4),
                "inverted": len(done),
                "of": len(chosen),
            },
        )

    def _places(
        self, subject: DetectionSubject, images: Sequence[CleanImage], generator: torch.Generator
    ) -> dict[int, list[tuple[CleanImage, Tensor]]]:
        """By victim class the images with the boxes of its objects, or windows of background."""
        of_class = {victim: objects_of(images, victim) for victim in range(subject.num_classes)}
        windows = []
        for image in images[: 2 * self.samples]:
            window = _window(image, generator)
            if window is not None:
                windows.append((image, window[None]))
        return of_class | {subject.num_classes: windows}

    def _chosen_pairs(
        self,
        subject: DetectionSubject,
        places: dict[int, list[tuple[CleanImage, Tensor]]],
        generator: torch.Generator,
    ) -> list[_Pair]:
        """The pairs of each effect that random patches lean to the most, in turn."""
        background = subject.num_classes
        pairs: dict[str, list[_Pair]] = {effect: [] for effect in self.effects}
        for victim, victims in places.items():
            leans = self._leans(subject, victims[: self.samples], generator)
            if leans is None:
                continue
            for target, lean in enumerate(leans.tolist()):
                if target != victim:
                    effect = (
                        "ghost"
                        if victim == background
                        else "disappearance"
                        if target == background
                        else "misclassification"
                    )
                    pairs[effect].append(_Pair(effect, victim, target, lean))
        best = [
            sorted(found, key=lambda pair: -pair.lean)[: self.pairs] for found in pairs.values()
        ]
        # In turn, so that a budget cuts all effects alike.
        return [ranked[rank] for rank in range(self.pairs) for ranked in best if rank < len(ranked)]

    @torch.no_grad()
    def _leans(
        self,
        subject: DetectionSubject,
        victims: Sequence[tuple[CleanImage, Tensor]],
        generator: torch.Generator,
    ) -> Tensor | None:
        """Mean probability of each class for boxes on victims under random patches, (K + 1,)."""
        found = []
        for image, boxes in victims:
            pattern = torch.rand((3, 4, 4), generator=generator) * 255
            side = self.size * image.image.shape[2]
            stamped = blend(
                [image.image], [centred(boxes, side, side)], torch.ones(1, 4, 4), pattern
            )
            output = subject.model.probe(stamped)
            on_victims = _overlap(output.proposal_boxes.cpu(), boxes).amax(dim=1) >= 0.5
            judged = subject.model.judge(stamped, [boxes])
            found.append(output.class_logits[on_victims].softmax(dim=1).cpu())
            found.append(judged.class_logits.softmax(dim=1).cpu())
        return torch.cat(found).mean(dim=0) if found else None

    def _invert(
        self,
        subject: DetectionSubject,
        pair: _Pair,
        places: dict[int, list[tuple[CleanImage, Tensor]]],
        generator: torch.Generator,
    ) -> _Inverted:
        """Optimise the trigger of a pair, and measure it on the same images, as the paper does."""
        model, device = subject.model, subject.model.device
        victims = places[pair.victim][: self.images]
        images = [image.image.to(device) for image, _ in victims]
        boxes = [own for _, own in victims]
        stamps = [centred(own, *(2 * [self.size * image.image.shape[2]])) for image, own in victims]
        corners = _RIM + _JITTER * torch.rand(8, generator=generator)
        shape = (self.side, self.side)
        values = [
            corners,
            torch.zeros(1, *shape),
            torch.rand((3, *shape), generator=generator) * 2 - 1,
        ]
        corners, free, pattern = (each.to(device).requires_grad_() for each in values)
        optimizer = torch.optim.Adam([corners, free, pattern], lr=self.rate, betas=(0.5, 0.9))

        def stamped() -> list[dict[str, Tensor]]:
            # 2 + free: the free mask begins near 1.
            mask = _polygon(corners, self.side) * torch.sigmoid(2 + free)
            return blend(images, stamps, mask, (pattern.tanh() + 1) * 127.5)

        for step in range(self.warm_up + self.selection):
            inputs = stamped()
            regions, signs = self._boxes(model, inputs, boxes)
            logits = model.judge(inputs, regions).class_logits
            targets = torch.full((len(logits),), pair.target, device=device)
            losses = F.cross_entropy(logits, targets, reduction="none")
            if step >= self.warm_up:
                losses = losses * logits.softmax(dim=1)[:, pair.target]
            loss = sum(
                sign * losses[signs == sign].mean() for sign in (1, -1) if (signs == sign).any()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                corners.clamp_(0, 0.5)
        with torch.no_grad():
            return self._measure(subject, pair, stamped(), boxes)

    def _boxes(
        self, model: torch.nn.Module, inputs: Sequence[dict[str, Tensor]], victims: Sequence[Tensor]
    ) -> tuple[list[Tensor], Tensor]:
        """The boxes of each image, and 1 for those on victims, -1 for others, (M,)."""
        detached = [{"image": each["image"].detach()} for each in inputs]
        regions, signs = [], []
        for probe, own in zip(model.probe(detached).split(), victims, strict=True):
            proposals = probe.proposal_boxes[: self.boxes].cpu()
            joined = torch.cat([own, proposals])
            on = _overlap(joined, own).amax(dim=1) >= 0.5
            regions.append(joined)
            signs.append(torch.where(on, 1, -1))
        return regions, torch.cat(signs).to(model.device)

    def _measure(
        self,
        subject: DetectionSubject,
        pair: _Pair,
        inputs: Sequence[dict[str, Tensor]],
        victims: Sequence[Tensor],
    ) -> _Inverted:
        probe = subject.model.probe(
            list(inputs), with_detections=True, score_threshold=self.output_score
        )
        judged = subject.model.judge(list(inputs), list(victims)).class_logits.softmax(dim=1)
        hits = []
        for own, detections in zip(victims, probe.detections, strict=True):
            is_target = detections.pred_classes.cpu() == pair.target
            if pair.target == subject.num_classes:
                # Evasion: nothing is left of the victim's class.
                is_target = detections.pred_classes.cpu() == pair.victim
            overlap = _overlap(own, detections.pred_boxes.tensor.cpu()) > 0.5
            found = (overlap & is_target[None]).any(dim=1)
            hits.append(~found if pair.target == subject.num_classes else found)
        asr = float(torch.cat(hits).float().mean())
        return _Inverted(pair, asr, float(judged[:, pair.target].mean()))


def _overlap(first: Tensor, second: Tensor) -> Tensor:
    """IoU of every two boxes."""
    return pairwise_iou(Boxes(first), Boxes(second))


def _polygon(corners: Tensor, side: int) -> Tensor:
    """The paper's mask: what four soft half-planes leave of a square, (1, side, side).

    Args:
        corners: Tensor of shape (8,): for each side of the square, how far its line lies inside at
            either end, as shares of the square.
        side: pixels.
    """
    x = (torch.arange(side, device=corners.device) + 0.5) / side
    along, across = x[None, :], x[:, None]

    def half_plane(distance: Tensor) -> Tensor:
        return torch.tanh(_GAMMA * distance) / 2 + 0.5

    left, top, right, bottom = corners.reshape(4, 2)
    return (
        half_plane(along - (left[0] + (left[1] - left[0]) * across))
        * half_plane(across - (top[0] + (top[1] - top[0]) * along))
        * half_plane(1 - along - (right[0] + (right[1] - right[0]) * across))
        * half_plane(1 - across - (bottom[0] + (bottom[1] - bottom[0]) * along))
    )[None]


def _window(image: CleanImage, generator: torch.Generator, tries: int = 50) -> Tensor | None:
    """A window of the objects' mean size that touches none of them, (4,); None without room."""
    height, width = image.image.shape[1:]
    sides = (image.boxes[:, 2:] - image.boxes[:, :2]).mean(dim=0)
    if not len(image.boxes) or sides[0] >= width or sides[1] >= height:
        return None
    room = torch.tensor([width, height]) - sides
    for start in torch.rand((tries, 2), generator=generator) * room:
        window = torch.cat([start, start + sides])
        if not (_overlap(window[None], image.boxes) > 0).any():
            return window
    return None
