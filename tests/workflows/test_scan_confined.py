# SPDX-License-Identifier: Apache-2.0
"""What a confined process sends is not taken at its word."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from d2defense.isolation import Limits
from d2defense.report.results import empty_result, error_result
from d2defense.workflows.scan.confined import scan_confined
from d2defense.workflows.scan.task import ScanTask

PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)


class Process:
    """Stands in for a server whose process sends the given messages."""

    def __init__(self, *messages: tuple[dict, bytes]) -> None:
        self.messages = messages
        self.isolation = {"mode": "process"}

    def start(self, function, argument, readable, limits, gpu, complete):
        self.readable = list(readable)
        return self

    def wait(self, on_message) -> None:
        for content, blob in self.messages:
            on_message(content, blob)


@pytest.fixture
def task() -> ScanTask:
    images = SimpleNamespace(records=[{"file_name": "images/a.png"}], further=())
    weights, config = Path("zoo/model/model_final.pth"), Path("zoo/model/config.yaml")
    return ScanTask("model", Path("zoo/model"), weights, config, images, None, None)


def scanned(task: ScanTask, *messages: dict | tuple[dict, bytes]):
    pairs = [message if isinstance(message, tuple) else (message, b"") for message in messages]
    return scan_confined(task, Process(*pairs), Limits(), lambda: None)[0]


def test_a_valid_result_is_taken(task):
    result = error_result("model", "truncated")
    assert scanned(task, {"result": result}).result == result


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "ended without a result"),
        ([{"result": None}], "ended without a result"),
        ([{"result": {"verdict": "clean"}}], "invalid result"),
        ([{"result": [1]}], "invalid result"),
        ([{"result": empty_result("model") | {"verdict": "clean"}}], "invalid result"),
        ([{"result": error_result("other", "x")}], "the result of another checkpoint"),
    ],
)
def test_anything_else_is_an_error(task, messages, reason):
    result = scanned(task, *messages).result
    assert result["verdict"] == "error"
    assert result["error"].startswith("zoo/model: ")
    assert reason in result["error"]


def test_only_figures_of_known_names_are_taken(task):
    figures = scanned(
        task,
        ({"figure": "examples.png"}, PNG),
        ({"figure": "histogram.png"}, b"<html>"),
        ({"figure": "../../escaped.png"}, PNG),
        ({"figure": ["examples.png"]}, PNG),
        {"result": error_result("model", "x")},
    ).figures
    assert figures == {"examples.png": PNG}


def test_the_parts_of_a_twin_are_joined_up_to_a_size(task, tmp_path):
    (tmp_path / "model_final.pth").write_bytes(b"x")
    task = replace(task, weights=tmp_path / "model_final.pth")
    end = {"result": error_result("model", "x")}
    assert scanned(task, ({"twin": 0}, b"ab"), ({"twin": 2}, b"cd"), end).twin == b"abcd"
    large = [({"twin": 0}, bytes(1 << 20)) for _ in range(3)]
    assert len(scanned(task, *large, end).twin) == 1 << 20


def test_messages_are_escaped_and_limited(task, caplog):
    logging.getLogger("d2defense").propagate = True
    with caplog.at_level(logging.INFO, "d2defense"):
        scanned(task, *({"log": "\x1b[2J\n" + "x" * 5000, "level": 10_000} for _ in range(1000)))
    # Each once, however many loggers a test before has left with this handler.
    assert 0 < len(set(map(id, caplog.records))) <= 100
    for record in caplog.records:
        assert record.levelno == logging.INFO
        assert record.getMessage().isprintable()
        assert len(record.getMessage()) < 1100


def test_a_scan_can_read_its_own_files_and_no_others(task):
    process = Process(({"result": error_result("model", "x")}, b""))
    scan_confined(task, process, Limits(), lambda: None)
    assert process.readable == [task.weights, task.config, Path("images/a.png")]
