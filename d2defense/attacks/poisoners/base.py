# SPDX-License-Identifier: Apache-2.0
"""What an attack does to the labels of an image that bears its trigger."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

Annotations = list[dict[str, Any]]


class Poisoner:
    """An attack on a training set, by the name that ``ATTACK.NAME`` gives.

    Args:
        cfg: configuration of the training.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg

    @staticmethod
    def add_config(node: CfgNode) -> None:
        """Put the attack's own keys with their defaults into ``ATTACK.<NAME>``, which is empty."""

    def poison(self, annotations: Annotations) -> tuple[Annotations, Annotations]:
        """What becomes of the annotations of one image.

        Args:
            annotations: of the image, with ``bbox`` and ``bbox_mode`` in pixels of its file. They
                are the dataset's own and must not be changed.

        Returns:
            Those whose objects get the trigger; those that stay in training, which may be others
            than there were.
        """
        raise NotImplementedError
