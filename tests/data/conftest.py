# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from d2defense.data import register_synth_signs


@pytest.fixture
def cache(tmp_path):
    """An empty cache folder that synth_signs is registered with for one test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("D2DEFENSE_CACHE", str(tmp_path / "cache"))
        register_synth_signs()
        yield tmp_path / "cache"
    register_synth_signs()
