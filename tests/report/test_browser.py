# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: no console errors, images are there, the table sorts."""

from __future__ import annotations

import base64
import re

import pytest

from d2defense import files
from d2defense.report.figures import draw_histograms
from d2defense.report.results import error_result
from d2defense.report.scan_page import write_scan_report


@pytest.fixture
def report(tmp_path, make_result, browser):
    """A report of four checkpoints, opened."""
    made = [
        make_result("middle", score=0.5, p_value=0.002, warnings=["1 tensor holds NaN"]),
        make_result("high", score=0.9, p_value=0.001),
        make_result("<b>low</b>", verdict="clean", score=0.05, p_value=0.5),
        error_result("gone<script>document.title='run'</script>", "no such file"),
    ]
    for index, result in enumerate(made):
        files.write_json(tmp_path / f"{index}" / "result.json", result)
    png = draw_histograms([0, 0.5, 1], {"clean": [3, 1]}, "made up")
    files.write_bytes(tmp_path / "0" / "histogram.png", png)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    browser.get(write_scan_report(tmp_path).as_uri())
    return browser


def column(browser, index):
    """The shown text of one column of the verdict table, row by row."""
    return browser.execute_script(
        "return Array.from(document.querySelectorAll('table.verdicts tbody tr'),"
        f" row => row.cells[{index}].innerText.trim())"
    )


def test_nothing_is_logged_and_images_are_there(report):
    sizes = report.execute_script("return Array.from(document.images, i => i.naturalWidth)")
    assert sizes
    assert all(size > 0 for size in sizes)
    assert report.get_log("browser") == []
    assert "run" not in report.title.split()
    assert report.execute_script("return document.querySelectorAll('h3 b, h3 script').length") == 0


def test_the_table_sorts_by_value_with_no_data_last(report):
    assert column(report, 0)[0] == "high"
    heading = "table.verdicts thead th:nth-child(3)"
    button = report.find_element("css selector", f"{heading} button")
    button.click()
    rising = column(report, 0)
    assert rising[:3] == ["<b>low</b>", "middle", "high"]
    assert rising[3].startswith("gone")
    button.click()
    falling = column(report, 0)
    assert falling[:3] == ["high", "middle", "<b>low</b>"]
    assert falling[3].startswith("gone")
    cell = report.find_element("css selector", heading)
    assert cell.get_attribute("aria-sort") == "descending"


@pytest.mark.parametrize("width", [360, 390, 768, 1280])
def test_the_page_never_scrolls_sideways(report, width):
    report.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
    )
    report.refresh()
    assert report.execute_script("return document.documentElement.scrollWidth") <= width


def test_every_column_sorts(report):
    columns = len(report.find_elements("css selector", "table.verdicts thead th"))
    assert columns >= 7
    for index in range(columns):
        button = f"table.verdicts thead th:nth-child({index + 1}) button"
        report.find_element("css selector", button).click()
        rising = column(report, index)
        report.find_element("css selector", button).click()
        falling = column(report, index)
        assert len(rising) == len(falling) == 4
        assert sorted(rising) == sorted(falling)
    assert report.get_log("browser") == []


def test_a_phone_shows_text_of_readable_size(report):
    report.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 390, "height": 844, "deviceScaleFactor": 3, "mobile": True},
    )
    report.refresh()
    smallest = report.execute_script(
        "return Math.min(...Array.from(document.querySelectorAll('main *'))"
        ".filter(e => e.children.length === 0 && e.innerText && e.offsetParent)"
        ".map(e => parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert smallest >= 11
    wide = report.execute_script(
        "return Array.from(document.querySelectorAll('table.verdicts td, table.verdicts th'))"
        ".filter(e => e.offsetParent && e.getBoundingClientRect().right > 391).length"
    )
    assert wide == 0


def test_paper_shows_everything(report):
    report.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    report.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
    )
    report.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    details = "return Array.from(document.querySelectorAll('details'), d => d.open)"
    assert all(report.execute_script(details))
    assert report.execute_script("return document.documentElement.scrollWidth") <= 720
    # Light letters of a dark theme would be lost on paper.
    colour = report.execute_script("return getComputedStyle(document.body).color")
    assert sum(map(int, re.findall(r"\d+", colour)[:3])) < 300
    page = base64.b64decode(report.print_page())
    assert page.startswith(b"%PDF")
    assert len(page) > 10_000


def test_warnings_are_shown(report):
    assert "1 tensor holds NaN" in report.find_element("css selector", "main").text
