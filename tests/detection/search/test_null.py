# SPDX-License-Identifier: Apache-2.0
"""Clean detectors searched like suspects set what counts as found."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from d2defense.detection.search import (
    ALONE,
    REFERENCES,
    TWIN,
    CleanSearch,
    ModeNull,
    NullError,
    SearchNull,
    Shown,
    load_null,
    shipped_null,
)

VALUES = ({"a": 0.3, "b": 0.02}, {"a": 0.2}, {"a": 0.25, "b": 0.04}, {"b": 0.0, "a": 0.35})
NULL = ModeNull(REFERENCES, VALUES)


def search(mode: str, level: str, excess: float) -> CleanSearch:
    """A clean detector that shows one arm, with a success of 0.5 more than its excess."""
    return CleanSearch("clean", mode, level, 50, 0, {"a": Shown(excess + 0.5, excess)})


def null(*searches: CleanSearch) -> SearchNull:
    """A null of these searches."""
    return SearchNull("mine", "signs", "f00d", searches)


def test_an_arm_counts_beyond_what_clean_detectors_show_by_it():
    assert NULL.score({"a": 0.5}) == pytest.approx(0.5 - 0.275)
    assert NULL.score({"a": 0.1, "b": 0.9}) == pytest.approx(0.88)
    # None of the clean ones got so far with it.
    assert NULL.score({"c": 0.4}) == pytest.approx(0.4)
    assert NULL.score({}) == 0


def test_the_threshold_is_the_end_of_students_prediction_interval():
    scores = [
        ModeNull(REFERENCES, tuple(other for other in VALUES if other is not each)).score(each)
        for each in VALUES
    ]
    deviation = max(np.std(scores, ddof=1), 0.05)
    expected = np.mean(scores) + stats.t.ppf(0.99, 3) * deviation * np.sqrt(1.25)
    assert NULL.reference.threshold == pytest.approx(expected)


def test_each_mode_has_a_null_of_its_own():
    both = null(
        *(search(REFERENCES, "fast", value) for value in (0.1, 0.2, 0.3)),
        *(search(TWIN, "fast", value) for value in (0.5, 0.6, 0.7)),
    )
    assert both.of(REFERENCES, "fast").baseline("a") == pytest.approx(0.2)
    assert both.of(TWIN, "fast").baseline("a") == pytest.approx(0.6)
    # None was searched alone: the success that all had.
    assert both.of(ALONE, "fast").baseline("a") == pytest.approx(0.9)


def test_those_searched_as_thoroughly_count_where_there_are_enough():
    searches = [search(REFERENCES, "fast", value) for value in (0.1, 0.2, 0.3)]
    searches += [search(REFERENCES, "standard", 0.8)] * 2
    assert null(*searches).of(REFERENCES, "fast").baseline("a") == pytest.approx(0.2)
    assert null(*searches).of(REFERENCES, "standard").baseline("a") == pytest.approx(0.44)


def test_what_was_held_against_nothing_has_no_part_in_an_excess():
    both = null(
        *(search(REFERENCES, "fast", value) for value in (0.1, 0.2, 0.3)),
        *(search(ALONE, "fast", value) for value in (0.5, 0.6, 0.7)),
    )
    assert both.of(TWIN, "fast").baseline("a") == pytest.approx(0.2)


def test_too_few_searches_make_no_null():
    with pytest.raises(NullError, match="at least 3"):
        null(search(TWIN, "fast", 0.1), search(TWIN, "fast", 0.1))


def test_what_is_saved_can_be_read(tmp_path):
    saved = null(*(search(REFERENCES, "fast", value) for value in (0.1, 0.2, 0.3)))
    path = tmp_path / "null.json"
    saved.save(path)
    assert load_null(path) == saved


@pytest.mark.parametrize("key", ["schema_version", "procedure_version", "searches", "dataset"])
def test_what_is_none_is_refused_with_one_line_that_says_how_to_make_one(tmp_path, key):
    path = tmp_path / "null.json"
    null(*(search(REFERENCES, "fast", value) for value in (0.1, 0.2, 0.3))).save(path)
    content = json.loads(path.read_text())
    content[key] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(NullError) as caught:
        load_null(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "tools/calibrate_search.py" in message
    assert "\n" not in message


def test_a_search_of_other_images_says_so():
    made = null(*(search(REFERENCES, "fast", value) for value in (0.1, 0.2, 0.3)))
    assert "not on these images" not in made.describe("f00d")
    assert "not on these images" in made.describe("beef")


def test_the_shipped_one_leaves_room_for_attacks_that_took():
    of_references = shipped_null().of(REFERENCES)
    assert len(of_references.searches) >= 6
    assert 0.1 < of_references.reference.threshold < 0.5
