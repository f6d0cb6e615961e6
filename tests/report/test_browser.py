# SPDX-License-Identifier: Apache-2.0
"""The report in a real browser: no console errors, images are there, the table sorts."""

from __future__ import annotations

import shutil

import pytest

from d2defense import files
from d2defense.report import html
from d2defense.report.figures import draw_histograms
from d2defense.report.results import error_result

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium that cannot reach the network."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless=new",
        "--window-size=1280,900",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--host-resolver-rules=MAP * ~NOTFOUND",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    session = webdriver.Chrome(
        options=options, service=webdriver.ChromeService(executable_path=driver)
    )
    yield session
    session.quit()


@pytest.fixture
def report(tmp_path, make_result, browser):
    """A report of four checkpoints, opened."""
    made = [
        make_result("middle", score=0.5, p_value=0.002),
        make_result("high", score=0.9, p_value=0.001),
        make_result("<b>low</b>", verdict="clean", score=0.05, p_value=0.5),
        error_result("gone<script>document.title='run'</script>", "no such file"),
    ]
    for index, result in enumerate(made):
        files.write_json(tmp_path / f"{index}" / "result.json", result)
    png = draw_histograms([0, 0.5, 1], {"clean": [3, 1]}, "made up")
    files.write_bytes(tmp_path / "0" / "histogram.png", png)
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.get(html.write_scan_report(tmp_path).as_uri())
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
