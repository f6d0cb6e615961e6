# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from d2defense.config import config_root, find_config


def test_a_shipped_name_comes_before_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    assert find_config("triggers", "plain") == config_root() / "triggers" / "plain.yaml"


def test_a_path_is_taken_as_it_is(tmp_path):
    path = tmp_path / "file.yaml"
    assert find_config("triggers", path) == path
    assert find_config("triggers", "file.yaml", beside=tmp_path) == path
    # Who reads it says that it is missing.
    assert find_config("triggers", "gone.yaml", beside=tmp_path) == tmp_path / "gone.yaml"


def test_what_is_neither_a_name_nor_a_path_is_refused_with_the_names():
    with pytest.raises(ValueError, match=r"'plane': neither a file nor one of plain, wide"):
        find_config("triggers", "plane")
