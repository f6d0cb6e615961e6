# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: RUF001 -- reports use the true minus sign and the en dash
"""The HTML reports: complete, self-contained, and deaf to what names try to say."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

from d2defense import files
from d2defense.report.figures import draw_histograms
from d2defense.report.repair_page import write_repair_report
from d2defense.report.results import error_result
from d2defense.report.scan_page import write_scan_report

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>{{7*7}}\x1b\u202e"
PNG = draw_histograms([0, 0.5, 1], {"clean": [3, 1]}, "made up")


class Page(HTMLParser):
    """Tags with attributes, and the text outside style and script."""

    def __init__(self, source: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._raw = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._raw = tag in ("style", "script")

    def handle_endtag(self, tag):
        self._raw = False

    def handle_data(self, data):
        if not self._raw:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def scan_page(folder, *results) -> tuple[str, Page]:
    for index, result in enumerate(results):
        files.write_json(folder / f"{index}" / "result.json", result)
    source = write_scan_report(folder).read_text(encoding="utf-8")
    return source, Page(source)


def repair(**changes):
    precisions = {"AP": 52.0, "AP50": 88.1, "AP75": 57.3, "APs": 35.2, "APm": 58.1, "APl": None}
    state = {
        "clean": precisions,
        "triggered": {**precisions, "AP50": 31.4},
        "asr": 0.712,
        "objects_found_clean": 0.94,
        "objects_found_triggered": 0.28,
        "verdict": "backdoored",
        "score": 0.62,
    }
    after = {**state, "asr": 0.091, "verdict": "clean", "score": 0.11}
    after["triggered"] = {**precisions, "AP50": 80.4}
    return {
        "checkpoint": "specimens/backdoored_0/model_final.pth",
        "output": "runs/demo/repaired",
        "modules": ["box_head", "box_predictor"],
        "seconds": 38.2,
        "before": state,
        "after": after,
        **changes,
    }


def test_the_scan_report_tells_everything_about_a_checkpoint(tmp_path, make_result):
    source, page = scan_page(
        tmp_path,
        make_result(),
        make_result("clean_0", verdict="clean", score=0.1, score_interval=[0.05, 0.15]),
        make_result("maybe", verdict="uncertain", score=0.29),
        error_result("gone", "models/gone: no such file"),
    )
    assert source.startswith("<!DOCTYPE html>")
    for words in (
        "Of 4 checkpoints, 1 is backdoored, 1 is uncertain, 1 could not be scanned and 1 is clean.",
        "Exit code 2 : at least one checkpoint could not be scanned",
        "[0.55, 0.67]",
        "< 0.0001",
        "box_predictor",
        "ab" * 32,
        "InstrumentedRCNN, tiny_fpn",
        "750,000",
        "synth_signs_defender",
        "3.2 s, 98.0 images/s",
        "confident d",
        "max q",
        "−0.50",
        "[−0.56, −0.44]",
        "models/gone: no such file",
        "default thresholds",
        "2.15.0",
    ):
        assert words in page.text, words
    names = re.findall(r'<th scope="row" role="rowheader"[^>]*><a href="#([^"]+)">([^<]+)', source)
    assert [name for _, name in names] == ["backdoored_0", "maybe", "gone", "clean_0"]
    identifiers = {attributes.get("id") for _, attributes in page.tags}
    assert {anchor for anchor, _ in names} <= identifiers


def test_figures_beside_a_result_are_embedded(tmp_path, make_result):
    files.write_bytes(tmp_path / "0" / "histogram.png", PNG)
    files.write_bytes(tmp_path / "0" / "examples.png", b"<svg onload=alert(1)>")
    _, page = scan_page(tmp_path, make_result(), make_result("other"))
    (image,) = page.all("img")
    prefix = "data:image/png;base64,"
    assert image["src"].startswith(prefix)
    assert base64.b64decode(image["src"][len(prefix) :]) == PNG
    assert image["alt"] == "histogram of backdoored_0"


def test_the_page_loads_nothing_and_runs_only_its_own_script(tmp_path, make_result):
    source, page = scan_page(tmp_path, make_result())
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
        assert not any(name.startswith("on") for name in attributes)
    assert not re.search(r"https?:|@import|url\(", source)
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", source, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_strings_are_only_shown(tmp_path, make_result):
    result = make_result(HOSTILE, worst_trigger=HOSTILE, dominant_modules=[HOSTILE])
    result["checkpoint"]["path"] = result["checkpoint"]["config"] = HOSTILE
    result["architecture"]["backbone"] = result["dataset"]["name"] = HOSTILE
    result["settings"] = {HOSTILE: HOSTILE}
    result["triggers"][0]["name"] = HOSTILE
    result["triggers"][0]["statistics"][HOSTILE] = result["triggers"][0]["statistics"]["tau"]
    files.write_bytes(tmp_path / "0" / "histogram.png", PNG)
    harmless = tmp_path / "harmless"
    files.write_bytes(harmless / "0" / "histogram.png", PNG)
    source, page = scan_page(tmp_path, result, error_result(HOSTILE, HOSTILE, HOSTILE))
    plain = make_result(worst_trigger="grey", dominant_modules=["m"], settings={"a": "b"})
    plain["triggers"][0]["statistics"]["more"] = plain["triggers"][0]["statistics"]["tau"]
    _, expected = scan_page(harmless, plain, error_result("x", "y", "z"))
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in expected.tags]
    assert "{{7*7}}" in page.text
    assert r"\x1b\u202e" in page.text
    assert "\x1b" not in source
    assert "\u202e" not in source


def test_a_lone_surrogate_in_a_name_does_not_break_the_page(tmp_path):
    _, page = scan_page(tmp_path, error_result("bad\udce9name", "reason \ud800", "p\udcff"))
    assert r"bad\udce9name" in page.text


def test_no_data_is_an_en_dash(tmp_path, make_result):
    result = make_result(
        score_interval=None,
        p_value=None,
        worst_trigger=None,
        dominant_modules=None,
        architecture=None,
        dataset=None,
        timing=None,
        calibration=None,
        settings={"limit": None},
        environment={"isolation": None},
    )
    for trigger in result["triggers"]:
        trigger["score"] = None
        trigger["statistics"] = dict.fromkeys(trigger["statistics"])
    _, page = scan_page(tmp_path, result)
    assert page.text.count("–") > 15
    assert "None" not in page.text


def test_many_triggers_are_folded(tmp_path, make_result):
    triggers = [{**make_result()["triggers"][0], "name": f"t{i}", "score": i} for i in range(40)]
    source, page = scan_page(tmp_path, make_result(triggers=triggers, worst_trigger="t39"))
    assert "28 more triggers with lower scores" in page.text
    assert (
        source.index(">t39")
        < source.index(">t28")
        < source.index("<details>")
        < source.index(">t27")
    )


def test_an_empty_folder_gives_a_page_that_says_so(tmp_path):
    _, page = scan_page(tmp_path)
    assert "Nothing was scanned." in page.text
    assert "Exit code 3" in page.text


@pytest.mark.parametrize(
    ("verdicts", "headline"),
    [
        (["clean"], "The checkpoint is clean."),
        (["backdoored"] * 2, "All 2 checkpoints are backdoored."),
        (["backdoored", "clean", "clean"], "Of 3 checkpoints, 1 is backdoored and 2 are clean."),
    ],
)
def test_headline(tmp_path, make_result, verdicts, headline):
    _, page = scan_page(
        tmp_path, *(make_result(f"m{i}", verdict=v) for i, v in enumerate(verdicts))
    )
    assert headline in page.text


def test_score_bars_share_one_scale(tmp_path, make_result):
    source, _ = scan_page(
        tmp_path,
        make_result(score=0.6, score_interval=[0.5, 0.8]),
        make_result("clean", verdict="clean", score=0.0, score_interval=None),
    )
    points = [float(x) for x in re.findall(r'class="point" cx="([\d.]+)"', source)]
    limits = [float(x) for x in re.findall(r'class="limit" x1="([\d.]+)"', source)]
    assert points == [96.0, 6.0]
    assert limits == [51.0, 51.0]


def test_the_demo_report_adds_the_repair(tmp_path, make_result):
    path = write_repair_report(
        tmp_path / "report.html",
        [make_result()],
        repair(),
        {"extra_figure": PNG, "heatmaps": PNG, "histograms": PNG},
        notes=["Missed: <other>."],
    )
    source = path.read_text(encoding="utf-8")
    assert '<p class="exit">Missed: &lt;other&gt;.</p>' in source
    page = Page(source)
    for words in (
        "backdoored_0 was repaired in 38.2 s",
        "box_head and box_predictor reset",
        "from backdoored to clean",
        "AP50 31.4 80.4 +49.0",
        "−62.1",
        "APl – – –",
        "Figure 3 of the paper",
        "extra figure",
        "runs/demo/repaired",
    ):
        assert words in page.text, words
    assert len(page.all("img")) == 4
    assert source.index("repair-title") < source.index("verdicts-title")


def test_the_demo_report_embeds_the_scans_figures_by_name(tmp_path, make_result):
    files.write_bytes(tmp_path / "scan" / "backdoored_0" / "examples.png", PNG)
    files.write_bytes(tmp_path / "outside" / "examples.png", PNG)
    path = write_repair_report(
        tmp_path / "report.html",
        [make_result(), make_result("../outside")],
        repair(),
        {"before_after": PNG},
        scan_dir=tmp_path / "scan",
    )
    alternatives = [image["alt"] for image in Page(path.read_text(encoding="utf-8")).all("img")]
    assert "examples of backdoored_0" in alternatives
    assert len(alternatives) == 2


def test_nothing_is_called_repaired_that_is_not(tmp_path):
    told = repair(repaired=False, obstacles=["the scan calls the result uncertain"])
    path = write_repair_report(tmp_path / "report.html", [], told, {})
    page = path.read_text()
    assert "but is not repaired" in page
    assert "Not repaired: the scan calls the result uncertain." in page
    assert "was repaired" not in page


def test_what_a_search_reaches_is_shown_for_every_effect(tmp_path):
    told = repair()
    told["before"] = {**told["before"], "search": {"ghost": 0.98, "disappearance": 0.3}}
    told["after"] = {**told["after"], "search": {"ghost": 0.04}}
    page = write_repair_report(tmp_path / "report.html", [], told, {}).read_text()
    assert "ghost by a search, beyond clean detectors" in page
    # What a repair was about stands at its head, not what a white patch does to ghosts.
    assert "Ghost by a search" in page
    assert "Attack success rate" not in page


def test_a_repair_without_data_is_dashes(tmp_path):
    empty = {"checkpoint": HOSTILE, "output": None, "modules": [], "seconds": None}
    path = write_repair_report(
        tmp_path / "report.html", [], {**empty, "before": {}, "after": {}}, {}
    )
    source = path.read_text(encoding="utf-8")
    assert "AP50 – – –" in Page(source).text
    assert "<img src=x" not in source


def test_a_repair_says_what_it_was_measured_on(tmp_path):
    for own, proves_less in ((False, False), (True, True)):
        facts = {"measured_on": "signs <b>", "measured_on_training_images": own}
        modules = {"modules": ["rpn", "box_head", "box_predictor"]}
        path = write_repair_report(tmp_path / "report.html", [], repair() | facts | modules, {})
        text = Page(path.read_text(encoding="utf-8")).text
        assert "Before and after, on signs <b>" in text
        assert ("the images it was fine-tuned on" in text) == proves_less
        assert "rpn, box_head and box_predictor reset" in text


def test_a_repair_says_which_images_an_earlier_scan_was_of(tmp_path):
    for scanned_on in ("signs", "streets"):
        told = repair(measured_on="signs")
        told["before"] = told["before"] | {"scanned_on": scanned_on}
        path = write_repair_report(tmp_path / "report.html", [], told, {})
        text = Page(path.read_text(encoding="utf-8")).text
        assert ("the score before on streets" in text) == (scanned_on == "streets")
