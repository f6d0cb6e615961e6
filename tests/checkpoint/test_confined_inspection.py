# SPDX-License-Identifier: Apache-2.0
"""Files are looked at in a process that may die of them, and is not believed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from d2defense.checkpoint import CheckpointError, confined_inspection, discover
from d2defense.checkpoint.confined_inspection import ConfinedInspector
from d2defense.checkpoint.file_kinds import WEIGHTS, FileKind
from d2defense.checkpoint.inspection import ConfigFacts, Question, inspect_here
from d2defense.isolation import ChildFailedError, Limits, ServerLostError, shared_server

MODULE = "d2defense.checkpoint.confined_inspection"


@pytest.fixture(scope="module")
def server():
    return lambda: shared_server((MODULE,))


def questions(folder: Path) -> list[Question]:
    (folder / "config.yaml").write_text("MODEL: {WEIGHTS: x.pth}\n_BASE_: base.yaml")
    (folder / "base.yaml").write_text("MODEL: {MASK_ON: True}")
    (folder / "last_checkpoint").write_text("x.pth\n")
    torch.save({"model": {"a": torch.ones(3)}}, folder / "x.pth")
    (folder / "notes").write_text("text")
    return [
        Question("config", folder / "config.yaml"),
        Question("document", folder / "config.yaml"),
        Question("marker", folder / "last_checkpoint"),
        Question("kind", folder / "x.pth"),
        Question("kind", folder / "notes"),
        Question("kind", folder / "gone"),
        Question("digest", folder / "x.pth"),
    ]


def test_a_confined_process_answers_as_this_one_does(server, tmp_path):
    asked = questions(tmp_path)
    answers = ConfinedInspector(server, Limits(), [tmp_path])(asked)
    here = inspect_here(asked)
    assert list(map(str, answers)) == list(map(str, here))
    facts, document, marker, kind, other, gone, digest = answers
    assert facts == ConfigFacts(True, "x.pth")
    assert len(document) == len(digest) == 64
    assert marker == "x.pth"
    assert (kind.kind, other.kind) == (WEIGHTS, "other")
    assert isinstance(gone, CheckpointError)


def test_it_reads_nothing_but_what_it_is_given(server, tmp_path):
    for name in ("given", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.pth").write_bytes(b"PK")
    (tmp_path / "given" / "link").symlink_to(tmp_path / "other" / "x.pth")
    asked = [
        Question("digest", tmp_path / path) for path in ("given/x.pth", "other/x.pth", "given/link")
    ]
    given, *others = ConfinedInspector(server, Limits(), [tmp_path / "given"])(asked)
    assert len(given) == 64
    assert all("Permission denied" in answer.reason for answer in others)


def test_a_file_that_takes_too_long_is_an_error_and_the_rest_goes_on(server, tmp_path):
    asked = questions(tmp_path)
    with open(tmp_path / "sparse.pth", "wb") as stream:
        stream.truncate(30 << 30)  # half a minute of reading
    asked.insert(2, Question("digest", tmp_path / "sparse.pth"))
    start = time.monotonic()
    answers = ConfinedInspector(server, Limits(seconds=1.5), [tmp_path])(asked)
    assert time.monotonic() - start < 15
    slow = answers.pop(2)
    assert slow.reason == "exceeded the time limit of 1.5 s"
    assert slow.path == tmp_path / "sparse.pth"
    del asked[2]
    assert list(map(str, answers)) == list(map(str, inspect_here(asked)))


class Server:
    """Stands in for a server; each of its processes does what one of ``runs`` says."""

    def __init__(self, *runs) -> None:
        self.runs = list(runs)
        self.asked: list[list] = []

    def start(self, function, argument, readable, limits):
        assert function == f"{MODULE}:main"
        self.asked.append(argument)
        return Run(*self.runs.pop(0))


class Run:
    """Sends messages, then ends as told; a cancelled one is lost."""

    def __init__(self, messages, end=None) -> None:
        self.messages, self.end = messages, end
        self.is_cancelled = False

    def wait(self, on_message) -> None:
        for message in self.messages:
            on_message(message, b"")
            if self.is_cancelled:
                raise ServerLostError("cancelled")
        if self.end is not None:
            raise self.end

    def cancel(self) -> None:
        self.is_cancelled = True


ASKED = [Question("kind", Path(f"{number}.pth")) for number in range(4)]
GOOD = {"answer": {"kind": "weights", "reason": "", "members": [None], "sample": "ab"}}


def test_a_file_that_ends_the_process_is_an_error_and_the_rest_goes_on():
    crash = ChildFailedError("its process was ended by SIGSEGV")
    server = Server(([GOOD], crash), ([GOOD, GOOD],))
    answers = ConfinedInspector(lambda: server, Limits(), [])(ASKED)
    assert [type(answer) for answer in answers] == [FileKind, CheckpointError, FileKind, FileKind]
    assert str(answers[1]) == "1.pth: its process was ended by SIGSEGV"
    assert [len(argument) for argument in server.asked] == [4, 2]


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        [],
        {"kind": "clean", "reason": "", "members": [None], "sample": ""},
        {"kind": "other", "reason": "", "members": "x", "sample": ""},
        {"kind": "other", "reason": "", "members": [None, None], "sample": ""},
        {"kind": "other", "reason": "", "members": ["x" * 1000], "sample": ""},
        {"kind": "other", "reason": "", "members": [1], "sample": ""},
        {"kind": "other", "reason": "", "members": [None], "sample": None},
    ],
)
def test_nonsense_is_an_error_of_the_file(answer):
    server = Server(([{"answer": answer}, GOOD],), ([GOOD] * 3,))
    answers = ConfinedInspector(lambda: server, Limits(), [])(ASKED)
    assert answers[0].reason.startswith("its process sent nonsense: ")
    assert all(isinstance(answer, FileKind) for answer in answers[1:])


@pytest.mark.parametrize(
    ("about", "answer"),
    [
        ("digest", {"sha256": "x" * 64}),
        ("digest", {"sha256": ""}),
        ("document", {"sha256": "../x"}),
        ("marker", {"text": 5}),
        ("marker", {"text": "x" * 5000}),
        ("config", {"is_detectron2": True, "weights": ["x"]}),
    ],
)
def test_answers_of_each_kind_are_checked(about, answer):
    server = Server(([{"answer": answer}],))
    (found,) = ConfinedInspector(lambda: server, Limits(), [])([Question(about, Path("x"))])
    assert found.reason.startswith("its process sent nonsense: ")


def test_what_it_says_is_shown_short_and_printable():
    server = Server(([{"answer": {"error": "\x1b[31m\n" + "x" * 10_000}}],))
    (found,) = ConfinedInspector(lambda: server, Limits(), [])(ASKED[:1])
    assert found.reason.isprintable()
    assert len(found.reason) <= 500


def test_more_than_was_asked_for_is_not_taken():
    server = Server(([GOOD] * 9,))
    assert len(ConfinedInspector(lambda: server, Limits(), [])(ASKED)) == 4


def test_a_process_that_says_nothing_is_an_error():
    server = Server(([],), ([GOOD] * 3,))
    answers = ConfinedInspector(lambda: server, Limits(), [])(ASKED)
    assert answers[0].reason == "its process ended before it was looked at"


def test_a_lost_server_says_nothing_of_a_file():
    lost = ServerLostError("gone")
    server = Server(([GOOD], lost), ([], lost), ([GOOD] * 3,))
    answers = ConfinedInspector(lambda: server, Limits(), [])(ASKED)
    assert all(isinstance(answer, FileKind) for answer in answers)
    server = Server(*[([], lost)] * 12)
    answers = ConfinedInspector(lambda: server, Limits(), [])(ASKED)
    assert {answer.reason for answer in answers} == {"gone"}


def test_files_that_end_process_after_process_are_given_up(monkeypatch):
    monkeypatch.setattr(confined_inspection, "MAX_FAILURES", 2)
    server = Server(*[([], ChildFailedError("crashed"))] * 3)
    answers = ConfinedInspector(lambda: server, Limits(), [])(ASKED)
    assert [answer.reason for answer in answers] == [
        *["crashed"] * 3, "not looked at: 3 others ended the process that looks at files",
    ]  # fmt: skip


def test_what_could_not_be_looked_at_is_an_error_of_the_search(output_folder):
    folder = output_folder("model", "config.yaml", "model_final.pth", "notes")

    def inspector(asked):
        return [
            CheckpointError(q.path, "crashed") if q.path.name == "notes" else answer
            for q, answer in zip(asked, inspect_here(asked), strict=True)
        ]

    good, bad = discover([folder], inspector=inspector).sources
    assert good.error is None
    assert (bad.path, bad.error.reason) == (folder / "notes", "crashed")
