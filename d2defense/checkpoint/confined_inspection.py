# SPDX-License-Identifier: Apache-2.0
"""Answers about untrusted files from a process that can do little harm."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from d2defense.isolation import ChildFailedError, Limits, Run, Server, ServerLostError
from d2defense.isolation.messages import Channel

from .errors import CheckpointError
from .inspection import Answer, Question, answer, parse

#: Of one question, unless a whole file has to be read for it.
SECONDS = 120.0
#: Files that may end the process that looks at them. Each costs the start of another one.
MAX_FAILURES = 100
_ATTEMPTS = 3
_POLL_SECONDS = 0.05


def main(questions: list[tuple[str, Path]], channel: Channel) -> None:
    """In the confined process: answer one question after another."""
    for about, path in questions:
        channel.send({"answer": answer(Question(about, path))})


class ConfinedInspector:
    """Answers questions in a confined process (:data:`~d2defense.checkpoint.inspection.Inspector`).

    One process answers all. If a question ends it, or takes too long, that question's answer is an
    error, and another process goes on with the next one.

    Args:
        server: from which the process is forked; called anew for each process.
        limits: of memory of the process and of time of one question.
        readable: files, and folders with what is below them, that questions are about.
    """

    def __init__(
        self, server: Callable[[], Server], limits: Limits, readable: Iterable[Path]
    ) -> None:
        self._server = server
        self._limits = limits
        self._readable = list(readable)

    def __call__(self, questions: Sequence[Question]) -> list[Answer]:
        """The answers, in order."""
        answers: list[Answer] = []
        failures = lost = 0
        while len(answers) < len(questions):
            before = len(answers)
            if failures > MAX_FAILURES:
                reason = f"not looked at: {failures} others ended the process that looks at files"
                answers += [CheckpointError(q.path, reason) for q in questions[before:]]
                break
            try:
                reason = self._answer(questions[before:], answers)
            except ServerLostError as error:
                # What is done to the server from outside says nothing of the file.
                lost = lost + 1 if len(answers) == before else 0
                if lost < _ATTEMPTS:
                    continue
                reason = str(error)
            if len(answers) < len(questions):
                failures += 1
                answers.append(CheckpointError(questions[len(answers)].path, reason))
        return answers

    def _answer(self, questions: Sequence[Question], answers: list[Answer]) -> str:
        """Add answers up to the first question that cannot be answered; why it cannot."""
        first = len(answers)
        limits = Limits(self._limits.memory_bytes, None)
        plain = [tuple(question) for question in questions]
        run = self._server().start(f"{__name__}:main", plain, self._readable, limits)
        nonsense = ""

        def on_message(content: dict[str, Any], blob: bytes) -> None:
            nonlocal nonsense
            number = len(answers) - first
            if nonsense or number >= len(questions):
                return
            try:
                answers.append(parse(questions[number], content.get("answer")))
            except ValueError as error:
                nonsense = f"its process sent nonsense: {error}"
                run.cancel()
            watch.moved(len(answers) - first)

        with _Watch(run, [self._seconds(question) for question in questions]) as watch:
            try:
                run.wait(on_message)
            except ChildFailedError as error:
                return str(error)
            except ServerLostError:
                if nonsense or watch.expired is not None:
                    return nonsense or f"exceeded the time limit of {watch.expired:g} s"
                raise
        return "its process ended before it was looked at"

    def _seconds(self, question: Question) -> float | None:
        limit = self._limits.seconds
        if question.about == "digest":
            return limit
        return SECONDS if limit is None else min(limit, SECONDS)


class _Watch:
    """Cancels a run that stays with one question for too long.

    Attributes:
        expired: the limit that was exceeded, in seconds.
    """

    def __init__(self, run: Run, seconds: Sequence[float | None]) -> None:
        self._run = run
        self._seconds = seconds
        self._number = 0
        self._since = time.monotonic()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.expired: float | None = None

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def moved(self, number: int) -> None:
        """The next question has begun."""
        self._number, self._since = number, time.monotonic()

    def _watch(self) -> None:
        while not self._is_over.wait(_POLL_SECONDS):
            number, since = self._number, self._since
            limit = self._seconds[number] if number < len(self._seconds) else SECONDS
            if limit is not None and time.monotonic() - since > limit:
                self.expired = limit
                self._run.cancel()
                return
