# SPDX-License-Identifier: Apache-2.0
"""The report's files, and its page in a real browser."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest

from d2defense.benchmark.leaderboard import write_leaderboard
from d2defense.benchmark.tables import summarise
from d2defense.study.results import FAILED, ResultRow, ResultStore


@pytest.fixture
def written(tmp_path, made_up_rows):
    evil = "<script>document.title='run'</script>"
    rows = [
        *made_up_rows[:-2],
        ResultRow("detect", "late", FAILED, None, "d0", truth="clean", reason="no time"),
        *(replace(r, family=evil) for r in made_up_rows[-2:]),
        # Few images turn the better method round.
        *(
            replace(r, images=5, value=-r.value)
            for r in made_up_rows
            if r.metric == "score" and r.method == "good"
        ),
    ]
    rows = [
        replace(r, took=False, asr=0.3, control_asr=0.0) if r.detector in ("d40", "d41") else r
        for r in rows
    ]
    ResultStore(tmp_path / "rows").put(rows)
    write_leaderboard(tmp_path / "rows", tmp_path / "report")
    return tmp_path / "report"


def test_markdown_names_every_method_best_first_and_what_failed(written):
    text = (written / "leaderboard.md").read_text()
    assert text.index("| `good` |") < text.index("| `poor` |")
    assert "44 detectors: 22 backdoored, 2 backdoored, did not take, 20 clean" in text
    assert "`late` on 1: no time" in text
    assert "By effect:" in text
    # With one number of images there is nothing to tell apart.
    assert "By later training" not in text
    widths = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert min(widths) > 3


def test_csv_holds_every_summary(written):
    with (written / "summaries.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    (auc,) = [
        float(line["value"])
        for line in lines
        if (line["method"], line["metric"], line["by"]) == ("poor", "AUC", "")
    ]
    (expected,) = [
        each.value
        for each in summarise(ResultStore(written.parent / "rows").read())
        if (each.method, each.metric, each.by) == ("poor", "AUC", "")
    ]
    assert auc == pytest.approx(expected)


def test_results_of_an_unknown_task_are_left_out(tmp_path, made_up_rows):
    ResultStore(tmp_path / "rows").put([replace(made_up_rows[0], task="cook")])
    with pytest.raises(ValueError, match="there are no rows"):
        write_leaderboard(tmp_path / "rows", tmp_path / "report")


def test_sequestered_ones_alone(tmp_path, made_up_rows):
    rows = [replace(r, sequestered=int(r.detector[1:]) % 3 == 0) for r in made_up_rows]
    ResultStore(tmp_path / "rows").put(rows)
    write_leaderboard(tmp_path / "rows", tmp_path / "report", sequestered_only=True)
    assert "15 detectors" in (tmp_path / "report" / "leaderboard.md").read_text()


def cells(browser, column):
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('table.ranking tbody tr'),"
        f" row => row.cells[{column}].innerText.trim())"
    )


def choose(browser, key, value):
    browser.execute_script(
        f"const s = document.querySelector('select[data-filter={key}]'); s.value = '{value}';"
        "s.dispatchEvent(new Event('change'))"
    )


@pytest.mark.slow
def test_the_page_ranks_filters_sorts_and_draws(browser, written):
    browser.get((written / "leaderboard.html").as_uri())
    assert cells(browser, 0)[:2] == ["good", "poor"]
    summaries = summarise(ResultStore(written.parent / "rows").read())
    for by, group in (
        ("", ""),
        ("effect", "ghost"),
        ("kind", "c4"),
        ("strength", "did not take: weak, ASR 0.2 and more"),
        ("images", "5 images"),
    ):
        (expected,) = [
            each
            for each in summaries
            if (each.method, each.metric, each.by, each.group) == ("good", "AUC", by, group)
        ]
        if by:
            choose(browser, by, group)
        shown = cells(browser, 0).index("good")
        counts = browser.find_element("css selector", "[data-counts]").text
        assert f"{expected.positives} backdoored, {expected.negatives} clean" in counts
        assert float(cells(browser, 1)[shown]) == pytest.approx(expected.value, abs=6e-4)
        interval = [float(each) for each in cells(browser, 2)[shown].split(" to ")]
        assert interval == pytest.approx([expected.low, expected.high], abs=6e-3)
        if by:
            choose(browser, by, "")
    lines = browser.find_elements("css selector", ".roc polyline")
    assert len(lines) >= 2
    for line in lines:
        assert line.get_attribute("points").startswith("40,370 ")
        assert line.get_attribute("points").endswith("400,10")
    browser.find_element("css selector", "table.ranking th:nth-child(2) button").click()
    rising = cells(browser, 0)
    assert rising.index("poor") < rising.index("good")
    # Nothing of a detector's facts runs, and nothing is loaded or complained about.
    assert "run" not in browser.title
    assert browser.get_log("browser") == []
    for width in (360, 1280):
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
        )
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
