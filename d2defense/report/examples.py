# SPDX-License-Identifier: Apache-2.0
"""One image with everything that the figures draw on it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Example:
    """One image, its true objects, and what one model proposed and detected in it.

    Boxes are pixels XYXY absolute; empty arrays and lists mean that there is none.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        target_boxes: float [M, 4], the true objects.
        proposal_boxes: float [N, 4], the RPN's proposals.
        objectness: float [N], p of each proposal, 0..1; q where a detector has no p.
        foreground: float [N], q of each proposal, 0..1.
        detection_boxes: float [D, 4], the model's final detections.
        detection_scores: float [D], 0..1.
        detection_classes: D class names.

    Raises:
        ValueError: a shape or the image's type is another one, or lengths disagree.
    """

    image: NDArray[np.uint8]
    target_boxes: NDArray[np.float64]
    proposal_boxes: NDArray[np.float64]
    objectness: NDArray[np.float64]
    foreground: NDArray[np.float64]
    detection_boxes: NDArray[np.float64]
    detection_scores: NDArray[np.float64]
    detection_classes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Bring boxes and scores to float64 arrays, and check that they fit together."""
        image = np.asarray(self.image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(f"image: expected uint8 [H, W, 3], got {image.dtype} {image.shape}")
        object.__setattr__(self, "image", image)
        for name in ("target_boxes", "proposal_boxes", "detection_boxes"):
            boxes = np.asarray(getattr(self, name), dtype=np.float64)
            boxes = boxes.reshape(0, 4) if boxes.size == 0 else boxes
            if boxes.ndim != 2 or boxes.shape[1] != 4:
                raise ValueError(f"{name}: expected [N, 4], got {list(boxes.shape)}")
            object.__setattr__(self, name, boxes)
        for name, boxes_name in (
            ("objectness", "proposal_boxes"),
            ("foreground", "proposal_boxes"),
            ("detection_scores", "detection_boxes"),
        ):
            scores = np.asarray(getattr(self, name), dtype=np.float64).reshape(-1)
            if len(scores) != len(getattr(self, boxes_name)):
                raise ValueError(
                    f"{name}: {len(scores)} values for {len(getattr(self, boxes_name))} boxes"
                )
            object.__setattr__(self, name, scores)
        if len(self.detection_classes) != len(self.detection_boxes):
            raise ValueError(
                f"detection_classes: {len(self.detection_classes)} names "
                f"for {len(self.detection_boxes)} boxes"
            )

    @property
    def inconsistency(self) -> NDArray[np.float64]:
        """s = |p - q| of each proposal, float [N]."""
        return np.abs(self.objectness - self.foreground)
