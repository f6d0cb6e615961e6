# SPDX-License-Identifier: Apache-2.0
"""Clean detectors searched like suspects set what counts as found."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from d2defense.detection.search import SearchNull, shipped_null
from d2defense.detection.search.null import margin

SEARCHES = ({"a": 0.3, "b": 0.02}, {"a": 0.2}, {"a": 0.25, "b": 0.04}, {"b": 0.0, "a": 0.35})


def test_an_arm_counts_beyond_what_clean_detectors_show_by_it():
    assert margin({"a": 0.5}, SEARCHES) == pytest.approx(0.5 - 0.275)
    assert margin({"a": 0.1, "b": 0.9}, SEARCHES) == pytest.approx(0.88)
    # None of the clean ones got so far with it.
    assert margin({"c": 0.4}, SEARCHES) == pytest.approx(0.4)
    assert margin({}, SEARCHES) == 0


def test_the_threshold_is_the_end_of_students_prediction_interval():
    null = SearchNull("four", SEARCHES)
    scores = [margin(each, [other for other in SEARCHES if other is not each]) for each in SEARCHES]
    deviation = max(np.std(scores, ddof=1), 0.05)
    expected = np.mean(scores) + stats.t.ppf(0.99, 3) * deviation * np.sqrt(1.25)
    assert null.reference.threshold == pytest.approx(expected)


def test_too_few_searches_make_no_null():
    with pytest.raises(ValueError, match="at least 3"):
        SearchNull("two", SEARCHES[:2])


def test_what_is_saved_can_be_read(tmp_path):
    import json

    null = SearchNull("four", SEARCHES)
    null.save(tmp_path / "null.json")
    read = SearchNull.from_dict(json.loads((tmp_path / "null.json").read_text()))
    assert read == null
    with pytest.raises(ValueError, match="schema_version"):
        SearchNull.from_dict({"schema_version": 0})


def test_the_shipped_one_leaves_room_for_attacks_that_took():
    null = shipped_null()
    assert len(null.searches) >= 6
    assert 0.1 < null.reference.threshold < 0.5
