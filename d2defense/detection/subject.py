# SPDX-License-Identifier: Apache-2.0
"""A checkpoint opened for a scan: its detector, and the clean images as that detector sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from detectron2.config import CfgNode
from torch import nn

from d2defense.checkpoint import build_detector
from d2defense.modeling import number_of_classes

from .classes import class_indices
from .images import CleanImages, load_clean_images
from .scan_images import ScanImages
from .settings import ScanSettings


class Source(Protocol):
    """What names the files of a checkpoint: a ``CheckpointSource``, or the task of a scan."""

    @property
    def weights(self) -> Path:
        """The weights file."""

    @property
    def config(self) -> Path:
        """The configuration file."""

    @property
    def trusted_config(self) -> bool:
        """Whether the user vouches for the configuration file."""

    @property
    def member(self) -> str | None:
        """Which of the file's sets of weights; the one that Detectron2 loads if None."""


class Subject(NamedTuple):
    """What is scanned."""

    model: nn.Module
    """The instrumented detector in eval mode."""
    images: CleanImages
    """The clean images at its input size, their classes numbered as it numbers them."""
    cfg: CfgNode
    """Its configuration."""


def open_subject(
    source: Source, images: ScanImages, settings: ScanSettings, device: str | None = None
) -> Subject:
    """Build the detector of a checkpoint and hand it the images of a scan.

    Args:
        source: says where weights and configuration are.
        images: the same for every checkpoint of a scan.
        settings: of the scan; its class map says which class of the detector an object is of.
        device: where to put the model; the config's choice, or the CPU without a GPU, if None.

    Raises:
        CheckpointError: the checkpoint cannot be used.
        ClassMapError: the class map does not fit dataset and detector.
    """
    model, cfg = build_detector(
        source.weights,
        source.config,
        device,
        trusted_config=source.trusted_config,
        member=source.member,
    )
    return Subject(model, as_seen(images.records, images, settings, cfg), cfg)


def as_seen(
    records: Sequence[dict[str, Any]], images: ScanImages, settings: ScanSettings, cfg: CfgNode
) -> CleanImages:
    """Records of the dataset as a detector sees them, their classes numbered as it numbers them.

    Args:
        records: some of the dataset.
        images: of the scan, which say what the dataset's classes are.
        settings: of the scan, with its class map.
        cfg: of the detector.

    Raises:
        ClassMapError: the class map does not fit dataset and detector.
    """
    classes = class_indices(images.class_names, number_of_classes(cfg), settings.class_map)
    return load_clean_images(list(records), cfg, classes)
