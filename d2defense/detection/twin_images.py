# SPDX-License-Identifier: Apache-2.0
"""The images that a scan can fine-tune a twin on."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from .images import CleanImage
from .scan_images import ScanImages
from .settings import ScanSettings
from .subject import as_seen
from .twin import LEAST_IMAGES, MOST_IMAGES


def images_for_twin(
    images: ScanImages,
    settings: ScanSettings,
    tuning: Sequence[CleanImage],
    num_held_out: int,
    cfg: CfgNode,
) -> list[CleanImage]:
    """The images to fine-tune on; empty where there are too few with objects of known class.

    Args:
        images: of the scan.
        settings: likewise.
        tuning: the images to search on; those of the dataset that the scan does not draw come to
            them.
        num_held_out: images that the search is measured on, which a twin must not see.
        cfg: the suspect's configuration.
    """
    left = max(0, MOST_IMAGES - len(tuning))
    further = as_seen(images.further[:left], images, settings, cfg)
    known = [image for image in (*tuning, *further) if (image.classes >= 0).any()]
    return known if len(known) + num_held_out >= LEAST_IMAGES else []
