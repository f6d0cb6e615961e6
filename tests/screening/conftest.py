# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def opened():
    """A function from a specimen's name to its detector and configuration, each opened once."""
    from functools import cache

    from d2defense.checkpoint import build_detector
    from d2defense.checkpoint.specimens import find_specimen

    @cache
    def open_specimen(name: str):
        source = find_specimen(name)
        return build_detector(source.weights, source.config, "cpu")

    return open_specimen


@pytest.fixture(scope="session")
def scenes(signs_cache):
    """A function that gives inputs of a detector for some images of a dataset."""
    from detectron2.data import DatasetMapper

    from d2defense.data import load_dataset

    def read(cfg, count: int, name: str = "synth_signs_defender"):
        mapper = DatasetMapper(cfg, is_train=False)
        return [mapper(dict(record)) for record in load_dataset(name)[:count]]

    return read
