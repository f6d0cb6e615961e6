# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util

import torch

from d2defense.ops import build_info, extension_available


def test_an_extension_that_was_built_can_be_imported():
    """Else every test of it would be skipped as if it had been left out on purpose."""
    assert extension_available() == (importlib.util.find_spec("d2defense._C") is not None)


def test_the_build_is_described():
    info = build_info()
    if not extension_available():
        assert info == {}
        return
    assert {"compiler", "torch", "cuda", "cuda_architectures"} <= info.keys()
    assert info["instruction_set"] in info["instruction_sets"]
    assert info["torch"].split("+")[0] == torch.__version__.split("+")[0]
