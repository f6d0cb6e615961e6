# SPDX-License-Identifier: Apache-2.0
"""Clean detectors searched like suspects set what counts as found."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from d2defense.detection.search import (
    ALONE,
    REFERENCES,
    TWIN,
    CleanSearch,
    ModeNull,
    SearchNull,
    SearchNullError,
    Shown,
    load_null,
    shipped_null,
)

VALUES = (
    {"a, big": 0.3, "b, big": 0.02},
    {"a, big": 0.2},
    {"a, big": 0.25, "b, big": 0.04},
    {"b, big": 0.0, "a, big": 0.45},
)
NULL = ModeNull(REFERENCES, VALUES)


def search(mode: str, level: str, excess: float) -> CleanSearch:
    """A clean detector that shows one arm, with a success of 0.5 more than its excess."""
    return CleanSearch("clean", mode, level, 50, 0, {"a": Shown(excess + 0.5, excess)})


def null(*searches: CleanSearch) -> SearchNull:
    """A null of these searches."""
    return SearchNull("mine", "signs", "f00d", searches)


def highest() -> list[float]:
    """What each clean detector shows at most beyond the mean of the others by the same arm."""
    found = []
    for each in VALUES:
        others = [other for other in VALUES if other is not each]
        found.append(
            max(
                value - np.mean([other[key] for other in others if key in other])
                for key, value in each.items()
            )
        )
    return found


def test_an_arm_counts_in_deviations_beyond_what_clean_detectors_show_at_most():
    middle, spread = np.mean(highest()), np.std(highest(), ddof=1)
    assert spread > 0.05
    assert NULL.score({"a, big": 0.8}) == pytest.approx((0.8 - 0.3 - middle) / spread)
    assert NULL.score({"a, big": 0.1, "b, big": 0.9}) == pytest.approx((0.88 - middle) / spread)
    # None of the clean ones got so far with it: the mean of its effect.
    assert NULL.score({"a, small": 0.8}) == pytest.approx((0.8 - 0.3 - middle) / spread)
    assert NULL.score({"c, big": 0.8}) == pytest.approx((0.8 - middle) / spread)
    assert NULL.score({}) == 0


def test_one_class_is_held_against_one_class():
    """The largest of several classes lies high by chance, and hides nothing else for that."""
    of_class = {f"a of one class, {i}": value for i, value in enumerate((0.1, 0.7))}
    searches = tuple({"a, big": v, **{k: x * v for k, x in of_class.items()}} for v in (0, 0.1, 1))
    null = ModeNull(REFERENCES, searches)
    assert null.deviation("a, big") > null.deviation("a of one class, 1") > 0.05
    without = ModeNull(REFERENCES, tuple({"a, big": each["a, big"]} for each in searches))
    assert null.score({"a, big": 0.9}) == pytest.approx(without.score({"a, big": 0.9}))


def test_where_clean_detectors_differ_too_much_nothing_can_be_said_to_be_absent():
    """A backdoor that always works has an excess of 1: no more stands out by any arm."""
    alike = {"ghost, big on background": 0.1, "ghost, small on background": 0.05}
    searches = [alike | {"disappearance, big on objects": each} for each in (0.0, 0.4, 0.8)]
    blind = ModeNull(REFERENCES, tuple(searches))
    keys = list(searches[0])
    for key in keys:
        # What is found is what scores above the threshold.
        score = blind.standardise(key, blind.least_found(key))
        assert score == pytest.approx(blind.reference.threshold)
    assert blind.least_found("disappearance, big on objects") > 1
    assert "disappearance on objects" in blind.blind_to((key, 0.0) for key in keys)


def test_by_one_arm_that_would_show_it_an_effect_can_be_absent():
    """As long as the references do not react to the very trigger."""
    shown = {"ghost, big on background": 0.1, "ghost, small on background": 0.05, "a on b": 0.0}
    null = ModeNull(REFERENCES, (shown,) * 3)
    assert null.least_found("ghost, big on background") < 0.6
    assert null.blind_to((key, 0.0) for key in shown) == ()
    reacting = dict.fromkeys(shown, 0.0) | {"ghost, big on background": 0.9}
    assert null.blind_to(reacting.items()) == ()
    reacting["ghost, small on background"] = 0.9
    assert null.blind_to(reacting.items()) == ("ghost on background",)


def test_few_clean_detectors_show_what_a_backdoor_would():
    """Those are not called clean (docs/method.md)."""
    null = shipped_null().of(REFERENCES)
    strong = [
        {key for key, value in each.items() if value >= 0.8 and null.standardise(key, value) < 3}
        for each in null.searches
    ]
    assert len(strong) == 24
    assert sum(map(bool, strong)) == 2
    keys = set().union(*strong)
    assert all("of one class, patch of 40 %" in key for key in keys), keys


def test_nothing_is_hidden_by_the_shipped_null():
    for mode in (REFERENCES, TWIN, ALONE):
        null = shipped_null().of(mode)
        keys = {key for each in null.searches for key in each}
        assert len(keys) > 8
        assert null.blind_to((key, 0.0) for key in keys) == ()


def test_what_may_be_anywhere_is_held_against_its_like():
    """Clean detectors hardly show it, so that a share that others show by chance is much."""
    searches = tuple({"ghost, big": v, "scene_ghost, big": v / 50} for v in (0, 0.1, 1))
    null = ModeNull(REFERENCES, searches)
    assert null.deviation("ghost, big") > 0.05 == null.deviation("scene_ghost, big")
    assert null.score({"scene_ghost, big": 0.4}) > 5 > 1 > null.score({"ghost, big": 0.4})
    # Where clean detectors show as much, as on photos full of what nobody labelled, it is not.
    assert null.score({"scene_ghost, big": 0.4}) == null.standardise("scene_ghost, big", 0.4, 0.1)
    assert null.standardise("scene_ghost, big", 0.4, 0.3) < 1
    assert null.standardise("ghost, big", 0.4, 0.3) == null.standardise("ghost, big", 0.4)
    # An effect that is not registered here is one like others.
    assert ModeNull(REFERENCES, ({"x, big": 0.1},) * 3).score({"x, big": 0.2}) == pytest.approx(2)


def test_the_threshold_is_the_end_of_students_prediction_interval():
    scores = (np.array(highest()) - np.mean(highest())) / np.std(highest(), ddof=1)
    deviation = max(np.std(scores, ddof=1), 1.0)
    expected = np.mean(scores) + stats.t.ppf(0.99, 3) * deviation * np.sqrt(1.25)
    assert NULL.reference.threshold == pytest.approx(expected)


def test_each_mode_has_a_null_of_its_own():
    both = null(
        *(search(REFERENCES, "fast", value) for value in (0.1, 0.2, 0.3)),
        *(search(TWIN, "fast", value) for value in (0.5, 0.6, 0.7)),
    )
    assert both.of(REFERENCES, "fast").searches[1] == {"a": 0.2}
    assert both.of(TWIN, "fast").searches[1] == {"a": 0.6}
    # None was searched alone: the success that all had.
    assert both.of(ALONE, "fast").searches[0] == pytest.approx({"a": 0.6})
    assert len(both.of(ALONE, "fast").searches) == 6


def test_those_searched_as_thoroughly_count_where_there_are_enough():
    searches = [search(REFERENCES, "fast", value) for value in (0.1, 0.2, 0.3)]
    searches += [search(REFERENCES, "standard", 0.8)] * 2
    assert len(null(*searches).of(REFERENCES, "fast").searches) == 3
    assert len(null(*searches).of(REFERENCES, "standard").searches) == 5


def test_what_was_held_against_nothing_has_no_part_in_an_excess():
    both = null(
        *(search(REFERENCES, "fast", value) for value in (0.1, 0.2, 0.3)),
        *(search(ALONE, "fast", value) for value in (0.5, 0.6, 0.7)),
    )
    assert both.of(TWIN, "fast").baseline("a") == pytest.approx(0.2)


def test_too_few_searches_make_no_null():
    with pytest.raises(SearchNullError, match="at least 3"):
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
    with pytest.raises(SearchNullError) as caught:
        load_null(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "tools/calibrate_search.py" in message
    assert "\n" not in message


def test_a_search_of_other_images_says_so():
    made = null(*(search(REFERENCES, "fast", value) for value in (0.1, 0.2, 0.3)))
    assert "not on these images" not in made.describe("f00d")
    assert "not on these images" in made.describe("beef")
    # Other images of the same dataset are like those it was made on.
    assert made.knows("signs", "beef")
    assert made.knows("another name", "f00d")
    assert not made.knows("photos", "beef")
    # A file of annotations may be another one of the same name.
    of_a_file = replace(made, dataset="val.json")
    assert of_a_file.knows("val.json", "f00d")
    assert not of_a_file.knows("val.json", "beef")


def test_the_shipped_one_leaves_room_for_attacks_that_took():
    of_references = shipped_null().of(REFERENCES)
    assert len(of_references.searches) >= 4
    # What a trigger must do more than to references, of objects of whatever class and of one.
    least = of_references.reference.threshold * of_references.deviation("disappearance, any")
    assert 0.2 < of_references.baseline("disappearance, any") + least < 0.7
