# SPDX-License-Identifier: Apache-2.0
"""What d2defense asks of a detector, whatever it is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, ClassVar, TypeVar

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from .described import arguments_of
from .probe import Heard, ProbeOutput
from .regions import Opinion, RegionOutput, with_proposals

#: The detectors that can be probed, by the stock names of their meta-architectures.
ADAPTERS: dict[str, type[InstrumentedDetector]] = {}
Adapter = TypeVar("Adapter", bound="type[InstrumentedDetector]")
Groups = dict[str, tuple[str, ...]]


class UnsupportedArchitectureError(ValueError):
    """The configured detector is none that d2defense can probe."""


class InstrumentedDetector(ABC):
    """Adds what d2defense needs to a detector of Detectron2, whose parameters and detections stay.

    A subclass puts this class in front of a stock one, and registers with :func:`adapts`. It takes
    the number of its classes from the config key that it names.

    Attributes:
        classes_key: of the configuration, such as "MODEL.ROI_HEADS.NUM_CLASSES".
        has_objectness: whether there is a second opinion: modules that say "something is here"
            before others say what. Without it a probe has no objectness.
    """

    classes_key: ClassVar[str]
    has_objectness: ClassVar[bool]

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The arguments of the stock class; of one that a LazyConfig describes, from that.

        Raises:
            DescriptionError: the description names something that is not allowed.
        """
        if cfg.MODEL.DESCRIPTION:
            return arguments_of(cfg.MODEL.DESCRIPTION)
        return super().from_config(cfg)

    @classmethod
    def instrument(cls, cfg: CfgNode) -> None:
        """Put the names of instrumented classes for those of the stock ones, in place.

        Raises:
            UnsupportedArchitectureError: a part of the detector cannot be probed.
        """
        cfg.MODEL.META_ARCHITECTURE = cls.__name__

    @staticmethod
    def parts(cfg: CfgNode) -> tuple[str | None, str | None]:
        """Names of what proposes boxes and of what classifies them; None for no such part."""
        return None, None

    @property
    @abstractmethod
    def resettable_modules(self) -> Groups:
        """Module groups that removal can reset, as prefixes of parameter names.

        May hold groups of heads that the detector does not have.
        """

    @property
    @abstractmethod
    def proposal_modules(self) -> tuple[str, ...]:
        """Those of them that give the objectness; none without it."""

    @property
    @abstractmethod
    def classification_modules(self) -> tuple[str, ...]:
        """Those of them that say what something is: what renewal resets by default."""

    @torch.no_grad()
    def probe(
        self,
        batched_inputs: list[dict[str, Any]],
        with_detections: bool = False,
        score_threshold: float = 0.0,
    ) -> ProbeOutput:
        """What the detector says of its proposals.

        Stops before NMS, masks and keypoints unless ``with_detections`` asks for the boxes that
        stock inference would return; these are in the pixels of the network's input, without the
        rescaling to ``height`` and ``width``.

        Args:
            batched_inputs: G dicts with ``image``, a Tensor of shape (C, H, W) in the format of
                ``INPUT.FORMAT``, values 0..255.
            with_detections: also return the detections.
            score_threshold: leave detections below this score, 0..1, out from the start, which
                saves their NMS. Those of at least this score are the stock ones, since NMS
                goes by falling scores; of a configuration that keeps fewer than is usual, those
                that it would drop are among them (:func:`~.postprocess.detections_from`).

        Returns:
            A :class:`ProbeOutput` on the model's device.

        Raises:
            RuntimeError: the model is in training mode.
        """
        self._check_eval_mode()
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        return self.probe_on(features, images, with_detections, score_threshold)

    @abstractmethod
    def probe_on(
        self,
        features: dict[str, Tensor],
        images: ImageList,
        with_detections: bool,
        score_threshold: float,
    ) -> ProbeOutput:
        """What :meth:`probe` says, from feature maps.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            images: G images.
            with_detections: see :meth:`probe`.
            score_threshold: likewise.
        """

    @torch.no_grad()
    def detect_and_probe(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], ProbeOutput]:
        """What stock inference returns, masks and keypoints included, and the probe beside it.

        Args:
            batched_inputs: G dicts, as stock inference takes them.

        Returns:
            The G dicts of stock inference, and the probe without detections.

        Raises:
            RuntimeError: the model is in training mode.
        """
        detections, probe, _ = self.listen(batched_inputs)
        return detections, probe

    @abstractmethod
    def listen(self, batched_inputs: list[dict[str, Any]]) -> Heard:
        """What stock inference returns, and all that it came from, in one pass over the network.

        Stock inference runs, and is listened to; other threads may run the model meanwhile.

        Args:
            batched_inputs: G dicts, as stock inference takes them.

        Raises:
            RuntimeError: the model is in training mode.
        """

    def judge(
        self,
        batched_inputs: list[dict[str, Any]],
        regions: Sequence[Tensor],
        refresh: bool = False,
    ) -> RegionOutput:
        """What the detector says of given regions, with gradient to the images.

        Unlike a probe it selects nothing: the same regions are judged however the image changes.

        Args:
            batched_inputs: G dicts with ``image``, as :meth:`probe` takes them.
            regions: G Tensors of shape (M_g, 4), XYXY in pixels of the network's input.
            refresh: judge the proposals of these very images, too, as far as they overlap a region
                (:func:`~d2defense.modeling.regions.with_proposals`): after those of its image.

        Returns:
            A :class:`RegionOutput` over the regions of all images in order, on the model's device.

        Raises:
            RuntimeError: the model is in training mode.
        """
        self._check_eval_mode()
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        if refresh:
            regions = [
                with_proposals(each, found.proposal_boxes.tensor)
                for each, found in zip(regions, self.proposals_on(features, images), strict=True)
            ]
        return self.regions_on(features, images.image_sizes, regions)

    @abstractmethod
    def proposals_on(self, features: dict[str, Tensor], images: ImageList) -> list[Instances]:
        """The proposals of inference, without gradient, whatever mode the model is in.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            images: G images.

        Returns:
            G Instances with ``proposal_boxes``, the surest first, and what :meth:`opinion_on`
            needs.
        """

    @abstractmethod
    def regions_on(
        self,
        features: dict[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        regions: Sequence[Tensor],
    ) -> RegionOutput:
        """What :meth:`judge` says, from feature maps, whatever mode the model is in.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            image_sizes: G pairs (height, width).
            regions: G Tensors of shape (M_g, 4), XYXY in pixels of the network's input.
        """

    def classifiers_on(
        self,
        features: dict[str, Tensor],
        image_sizes: Sequence[tuple[int, int]],
        regions: Sequence[Tensor],
    ) -> tuple[Tensor, ...]:
        """Likewise the class logits of each classifier, (M, K + 1), those that count last.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            image_sizes: G pairs (height, width).
            regions: G Tensors of shape (M_g, 4), XYXY in pixels of the network's input.
        """
        return (self.regions_on(features, image_sizes, regions).class_logits,)

    @abstractmethod
    def opinion_on(self, features: dict[str, Tensor], proposals: Sequence[Instances]) -> Opinion:
        """What the detector says of given proposals and of their boxes, with gradient.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            proposals: G Instances of :meth:`proposals_on`.
        """

    def features(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The backbone's feature maps by name, each of shape (G, C, H, W).

        Args:
            batched_inputs: G dicts with ``image``, as :meth:`probe` takes them.
        """
        return self.backbone(self.preprocess_image(batched_inputs).tensor)

    def losses_and_features(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What stock training returns, and the feature maps that it rests on, from one pass.

        Args:
            batched_inputs: G dicts with ``image`` and ``instances``, as stock training takes them.

        Returns:
            losses by name, with gradient; the backbone's feature maps by name, likewise.

        Raises:
            RuntimeError: the model is in eval mode, where it has no losses.
        """
        if not self.training:
            raise RuntimeError("losses need the model in training mode: call model.train() first")
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        return self.losses_on(features, images, batched_inputs), features

    @abstractmethod
    def losses_on(
        self, features: dict[str, Tensor], images: ImageList, batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """The stock losses by name, from feature maps that are there already.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            images: G images.
            batched_inputs: G dicts with ``instances``.
        """

    @abstractmethod
    def opinions(
        self, features: dict[str, Tensor], images: ImageList, count: int
    ) -> tuple[ProbeOutput, Tensor | None]:
        """What it says of its likeliest proposals and anchors, with gradient, also in training.

        Args:
            features: feature maps by name, each of shape (G, C, H, W).
            images: G images.
            count: of the proposals and of the anchors of each image, at most.

        Returns:
            The probe of the proposals; the largest objectness logits, (G, A), or None without
            objectness.
        """

    @property
    def beside_boxes(self) -> tuple[tuple[nn.Module, str], ...]:
        """Modules and their switches for what they give beside boxes, such as masks."""
        return ()

    @abstractmethod
    def run_shapes(self, features: dict[str, Tensor]) -> Sequence[Tensor]:
        """Send feature maps through every layer of the heads once, for their shapes.

        Works on PyTorch's meta device, where nothing is selected and so no box is left.

        Args:
            features: the backbone's, of one image.

        Returns:
            What of inference is as large as the image and no layer's output.
        """

    @property
    @abstractmethod
    def prediction_bytes(self) -> int:
        """Of the class scores and boxes of all candidates of one image, beside the layers'."""

    def _check_eval_mode(self) -> None:
        if self.training:
            raise RuntimeError("a probe needs the model in eval mode: call model.eval() first")


def adapts(stock: str) -> Callable[[Adapter], Adapter]:
    """Decorator that registers an instrumented detector, with Detectron2 and with us.

    Args:
        stock: name of the meta-architecture that it stands for.
    """

    def register(adapter: Adapter) -> Adapter:
        META_ARCH_REGISTRY.register(adapter)
        ADAPTERS[stock] = adapter
        return adapter

    return register


def adapter_of(cfg: CfgNode) -> type[InstrumentedDetector] | None:
    """The instrumented class of a stock or instrumented configuration; None if there is none."""
    name = cfg.MODEL.META_ARCHITECTURE
    by_name = {adapter.__name__: adapter for adapter in ADAPTERS.values()}
    return ADAPTERS.get(name) or by_name.get(name)


def number_of_classes(cfg: CfgNode) -> int:
    """How many classes the configured detector tells apart, without background.

    Raises:
        UnsupportedArchitectureError: d2defense does not know the detector.
    """
    return reduce(getattr, _key(cfg).split("."), cfg)


def set_number_of_classes(cfg: CfgNode, number: int) -> None:
    """Make the configured detector one of so many classes, in place.

    Raises:
        UnsupportedArchitectureError: d2defense does not know the detector.
    """
    if cfg.MODEL.DESCRIPTION:
        raise UnsupportedArchitectureError("a LazyConfig says how many classes its detector has")
    cfg.merge_from_list([_key(cfg), number])


def _key(cfg: CfgNode) -> str:
    adapter = adapter_of(cfg)
    if adapter is None:
        name = str(cfg.MODEL.META_ARCHITECTURE)[:80]
        raise UnsupportedArchitectureError(f"MODEL.META_ARCHITECTURE is {name!r}")
    return adapter.classes_key


def replaced_name(key: str, name: str, known: dict[str, str], reasons: dict[str, str]) -> str:
    """The instrumented name for a stock one.

    Args:
        key: of the configuration, for the message.
        name: stock or instrumented.
        known: instrumented names by stock ones.
        reasons: why others are refused.

    Raises:
        UnsupportedArchitectureError: the name is another one.
    """
    if name in known.values():
        return name
    if name in known:
        return known[name]
    reason = reasons.get(name, "d2defense does not know it")
    raise UnsupportedArchitectureError(
        f"{key} is {str(name)[:80]!r}: {reason}; what can be probed: {', '.join(known)}"
    )
