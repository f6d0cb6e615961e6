# SPDX-License-Identifier: Apache-2.0
"""The detector that scanner, removal and training share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN
from detectron2.structures import Instances
from torch import Tensor

from .probe import ProbeOutput
from .regions import RegionOutput, as_proposals, with_proposals


@META_ARCH_REGISTRY.register()
class InstrumentedRCNN(GeneralizedRCNN):
    """Detectron2's GeneralizedRCNN, parameters and forward pass unchanged, that can be probed."""

    @torch.no_grad()
    def probe(
        self,
        batched_inputs: list[dict[str, Any]],
        with_detections: bool = False,
        score_threshold: float = 0.0,
    ) -> ProbeOutput:
        """What the RPN and the box head say of the same proposals.

        Stops before NMS, masks and keypoints unless ``with_detections`` asks for the boxes that
        stock inference would return; these are in the pixels of the network's input, without the
        rescaling to ``height`` and ``width``.

        Args:
            batched_inputs: G dicts with ``image``, a Tensor of shape (C, H, W) in the format of
                ``INPUT.FORMAT``, values 0..255.
            with_detections: also return the detections.
            score_threshold: leave detections below this score, 0..1, out from the start, which
                saves their NMS. Those of at least this score are the stock ones, since NMS
                goes by falling scores.

        Returns:
            A :class:`ProbeOutput` on the model's device.

        Raises:
            RuntimeError: the model is in training mode, where proposals are another set.
        """
        self._check_eval_mode()
        images = self.preprocess_image(batched_inputs)
        features = self.backbone(images.tensor)
        proposals = self.proposal_generator.probe(images, features)
        return self.roi_heads.probe(features, proposals, with_detections, score_threshold)

    @torch.no_grad()
    def detect_and_probe(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[list[dict[str, Any]], ProbeOutput]:
        """What stock inference returns, masks and keypoints included, and the probe beside it.

        One pass over the network gives both: stock inference runs, and is listened to.

        Args:
            batched_inputs: G dicts, as stock inference takes them.

        Returns:
            The G dicts of stock inference, and the probe without detections.

        Raises:
            RuntimeError: the model is in training mode.
        """
        self._check_eval_mode()
        proposals: list[Instances] = []
        hook = self.proposal_generator.register_forward_hook(
            lambda generator, inputs, output: proposals.extend(output[0])
        )
        try:
            with self.roi_heads.recorded_logits() as logits:
                detections = self(batched_inputs)
        finally:
            hook.remove()
        return detections, ProbeOutput.from_proposals(proposals, logits)

    def judge(
        self,
        batched_inputs: list[dict[str, Any]],
        regions: Sequence[Tensor],
        refresh: bool = False,
    ) -> RegionOutput:
        """What both heads say of given regions, with gradient to the images.

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
            with torch.no_grad():
                current = self.proposal_generator.probe(images, features)
            regions = [
                with_proposals(each, found.proposal_boxes.tensor)
                for each, found in zip(regions, current, strict=True)
            ]
        objectness = self.proposal_generator.region_logits(features, regions)
        proposals = as_proposals(regions, images.image_sizes, self.device)
        return RegionOutput(objectness, self.roi_heads.region_logits(features, proposals))

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
        instances = [each["instances"].to(self.device) for each in batched_inputs]
        features = self.backbone(images.tensor)
        proposals, rpn_losses = self.proposal_generator(images, features, instances)
        _, head_losses = self.roi_heads(images, features, proposals, instances)
        return head_losses | rpn_losses, features

    def _check_eval_mode(self) -> None:
        if self.training:
            raise RuntimeError("a probe needs the model in eval mode: call model.eval() first")
