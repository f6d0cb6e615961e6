# SPDX-License-Identifier: Apache-2.0
"""A checkpoint opened for a scan: its detector, and the clean images as that detector sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
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
    def name(self) -> str:
        """Of the checkpoint."""

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


def open_references(
    sources: Iterable[Source],
    subject: Subject,
    images: ScanImages,
    settings: ScanSettings,
    device: str | None = None,
) -> tuple[dict[str, nn.Module], list[str]]:
    """The references that a suspect can be held against, and why others cannot.

    Args:
        sources: checkpoints that are held to be clean.
        subject: the suspect.
        images: of the scan.
        settings: of the scan.
        device: as :func:`open_subject`.

    Returns:
        Those of as many classes and the same order of channels that are not the suspect itself, by
        name, their parameters without gradient; and a line for each of the others.

    Raises:
        CheckpointError: a reference cannot be used.
    """
    usable, left_out = {}, []
    for source in sources:
        reference = open_subject(source, images, settings, device)
        if number_of_classes(reference.cfg) != number_of_classes(subject.cfg):
            left_out.append(f"{source.name}: it has another number of classes")
        elif reference.cfg.INPUT.FORMAT != subject.cfg.INPUT.FORMAT:
            left_out.append(f"{source.name}: it takes its channels in another order")
        elif _have_same_weights(subject.model, reference.model):
            left_out.append(f"{source.name}: it is the suspect itself")
        else:
            usable[source.name] = reference.model.requires_grad_(False)
    return usable, left_out


def _have_same_weights(model: nn.Module, other: nn.Module) -> bool:
    first, second = model.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        first[name].shape == second[name].shape and torch.equal(first[name], second[name])
        for name in first
    )
