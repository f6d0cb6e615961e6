# SPDX-License-Identifier: Apache-2.0
"""How every command ends: whatever happens, with an exit code that says what happened."""

from __future__ import annotations

import os
import platform
import select
import shlex
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import d2defense
from d2defense.files import write_text
from d2defense.text import shorten

#: Exit code of a scan that has found something. No other end has it.
VERDICT = 1
#: Exit code of what nobody foresaw.
FAILED = 2
#: Exit code after Ctrl-C, as a shell has it.
INTERRUPTED = 128 + signal.SIGINT
#: Exit code when whoever read the output went away, as a shell has it.
READER_GONE = 128 + 13
LOG_FILE = "error.log"
_MESSAGE_WIDTH = 300


def run_to_end(
    command: Callable[[], int],
    program: str,
    log_folder: Callable[[], Path | None] = lambda: None,
) -> int:
    """Run a command so that :data:`VERDICT` is never the exit code but where it returns that.

    An exception that nobody foresaw becomes one line on standard error, which names a file with
    the whole story, and :data:`FAILED`. Ctrl-C gives :data:`INTERRUPTED`, SIGTERM and SIGHUP give
    what shells make of them, a reader of the output that has gone gives :data:`READER_GONE` and no
    word. While the command runs, a terminal that lacks a character shows a question mark for it.

    Args:
        command: returns the exit code; one that comes with a ``SystemExit`` is taken too, but not
            :data:`VERDICT`.
        program: what messages begin with.
        log_folder: where the log goes, asked for when there is one to write; the folder for
            temporary files if it is None, no folder, or cannot be written to.

    Returns:
        The exit code.
    """
    with _printing_any_character(), _ending_on_termination():
        try:
            code = command()
            _flush()
            return code
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return INTERRUPTED
        except SystemExit as ended:
            return _code_of(ended)
        except Exception as error:
            if _reader_is_gone():
                _discard_output()
                return READER_GONE
            _report(error, program, log_folder)
            return FAILED


def _flush() -> None:
    """Now, while an error still can be told; at the interpreter's end it is too late."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _code_of(ended: SystemExit) -> int:
    if ended.code is None:
        return 0
    if not isinstance(ended.code, int):
        print(shorten(ended.code, _MESSAGE_WIDTH), file=sys.stderr)
        return FAILED
    return FAILED if ended.code == VERDICT else ended.code


def _reader_is_gone() -> bool:
    """Whether standard output or standard error is a pipe that nobody reads any more."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(events & select.POLLERR for _, events in poll.poll(0))


def _discard_output() -> None:
    """Keep the interpreter's end from failing on what is left to write."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with suppress(OSError):
            os.dup2(nothing, descriptor)
    os.close(nothing)


def _report(error: Exception, program: str, log_folder: Callable[[], Path | None]) -> None:
    story = "".join(
        (
            f"{time.strftime('%Y-%m-%d %H:%M:%S')}\n{shlex.join(sys.argv)}\n",
            f"d2defense {d2defense.__version__}, Python {platform.python_version()}, "
            f"{platform.platform()}\n\n",
            *traceback.format_exception(error),
        )
    ).encode("utf-8", errors="backslashreplace")
    words = shorten(f"{type(error).__name__}: {error}", _MESSAGE_WIDTH)
    try:
        log = _write_log(story.decode("utf-8"), log_folder)
    except OSError:
        sys.stderr.write(story.decode("utf-8"))
        log = None
    where = "the whole story is above" if log is None else f"the whole story is in {log}"
    print(f"{program}: error: unforeseen {words}; {where}", file=sys.stderr)


def _write_log(story: str, log_folder: Callable[[], Path | None]) -> Path:
    with suppress(Exception):
        folder = log_folder()
        if folder is not None and Path(folder).is_dir():
            return write_text(Path(folder) / LOG_FILE, story)
    descriptor, name = tempfile.mkstemp(prefix="d2defense-", suffix=".log")
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(story)
    return Path(name)


@contextmanager
def _printing_any_character() -> Iterator[None]:
    before = []
    for stream in (sys.stdout, sys.stderr):
        errors = getattr(stream, "errors", None)
        if errors in ("strict", "surrogateescape") and hasattr(stream, "reconfigure"):
            before.append((stream, errors))
            stream.reconfigure(errors="replace")
    try:
        yield
    finally:
        for stream, errors in before:
            with suppress(ValueError, OSError):  # closed, or nobody reads
                stream.reconfigure(errors=errors)


@contextmanager
def _ending_on_termination() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does: after it has cleaned up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> NoReturn:
        print("terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
