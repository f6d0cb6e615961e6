# SPDX-License-Identifier: Apache-2.0
"""COCO-format data of one's own in the place of a config's datasets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from d2defense.data import DatasetError, DatasetSource
from d2defense.modeling import set_number_of_classes


@dataclass(frozen=True)
class OwnData:
    """The datasets that a command line gives to train and to evaluate on; either may be empty."""

    train: tuple[DatasetSource, ...] = ()
    test: tuple[DatasetSource, ...] = ()

    @classmethod
    def from_options(
        cls,
        json_files: Sequence[str],
        image_roots: Sequence[str],
        test_json_files: Sequence[str] = (),
        test_image_roots: Sequence[str] = (),
        skip_unusable: bool = False,
    ) -> OwnData:
        """Datasets from pairs of an annotation file and an image folder.

        Without pairs for evaluation, the first pair is trained on and a second one evaluated on.
        ``skip_unusable`` as of :class:`DatasetSource`.

        Raises:
            ValueError: an annotation file without folder or the reverse, or no role for a pair.
        """
        train = _sources(json_files, image_roots, "", skip_unusable)
        test = _sources(test_json_files, test_image_roots, "test-", skip_unusable)
        if test:
            return cls(train, test)
        if len(train) > 2:
            raise ValueError(
                "with more than two --dataset-json, say which to evaluate on: --test-dataset-json"
                " and --test-image-root"
            )
        return cls(train[:1], train[1:])

    def apply(self, cfg: CfgNode) -> None:
        """Register the datasets and put them, and the number of their classes, into ``cfg``.

        A config's own datasets are not evaluated on when it is trained on others.

        Raises:
            DatasetError: one cannot be used, or they differ in their classes.
        """
        sources = [*self.train, *self.test]
        if not sources:
            return
        classes = [_classes(source) for source in sources]
        for source, names in zip(sources, classes, strict=True):
            if names != classes[0]:
                raise DatasetError(
                    f"{source.name}: its classes are not those of {sources[0].name}: "
                    f"{', '.join(names)} instead of {', '.join(classes[0])}"
                )
        if self.train:
            cfg.DATASETS.TRAIN = tuple(source.name for source in self.train)
        cfg.DATASETS.TEST = tuple(source.name for source in self.test)
        set_number_of_classes(cfg, len(classes[0]))

    def source(self, name: str) -> DatasetSource:
        """What stands behind the name of a dataset: one of these, or a registered one."""
        of_name = {source.name: source for source in (*self.train, *self.test)}
        return of_name.get(name, DatasetSource(name))


def _sources(
    json_files: Sequence[str], image_roots: Sequence[str], role: str, skip_unusable: bool
) -> tuple[DatasetSource, ...]:
    if len(json_files) != len(image_roots):
        raise ValueError(f"give --{role}dataset-json and --{role}image-root in pairs")
    return tuple(
        DatasetSource(json_file, json_file, root, skip_unusable)
        for json_file, root in zip(json_files, image_roots, strict=True)
    )


def _classes(source: DatasetSource) -> list[str]:
    source.load()
    return MetadataCatalog.get(source.name).thing_classes
