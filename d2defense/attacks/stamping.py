# SPDX-License-Identifier: Apache-2.0
"""Images with an attack's trigger, as files: what a detector in production would be shown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data.detection_utils import read_image

from d2defense.files import write_bytes
from d2defense.triggers import Trigger

from .effects.base import Effect
from .mapper import StampTransform, attacked_places, image_seed

_FORMAT = "BGR"


def write_triggered(
    records: Iterable[dict[str, Any]], trigger: Trigger, effect: Effect, folder: Path
) -> Iterator[tuple[str, np.ndarray]]:
    """Write each image with the trigger wherever the effect puts it on a test image, as PNG.

    Images where the effect has no place for it are left out. Of images of one name that lie in
    different folders the later ones get a number.

    Args:
        records: Detectron2's standard dataset dicts, of images that can be read.
        trigger: any family's.
        effect: says where it goes.
        folder: is made; files of the same names in it are replaced.

    Yields:
        name of each file and where its triggers are, float (P, 4), XYXY in pixels.

    Raises:
        OSError: the folder cannot be written to.
    """
    taken: set[str] = set()
    for record in records:
        places = attacked_places(record, effect)
        if not len(places):
            continue
        stem = Path(record["file_name"]).stem
        name, number = f"{stem}.png", 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}.png"
        taken.add(name)
        stamp = StampTransform(trigger, places, _FORMAT, image_seed(record["file_name"]))
        pixels = stamp.apply_image(read_image(record["file_name"], format=_FORMAT))
        write_bytes(folder / name, cv2.imencode(".png", pixels)[1].tobytes())
        yield name, places
