# SPDX-License-Identifier: Apache-2.0
"""Fuzzes the readers of untrusted configs and weights with atheris: ``make fuzz``.

Whatever the bytes, a reader returns or raises ``CheckpointError``; it runs nothing, opens nothing
for writing and reaches no network. Arguments are libFuzzer's, such as ``-max_total_time=60`` or a
file that made an earlier run fail. Without atheris the program says so and ends well.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

if atheris is not None and __name__ == "__main__":
    with atheris.instrument_imports(include=["d2defense"]):
        from d2defense.checkpoint import CheckpointError, load_config, load_state_dict
else:
    from d2defense.checkpoint import CheckpointError, load_config, load_state_dict

import torch
from safetensors.torch import save as save_safetensors

FOLDER = Path(tempfile.gettempdir())
SEED = 1

_FORBIDDEN = (
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("subprocess.Popen", "os.remove", "os.rename", "os.rmdir", "os.chmod", "os.symlink"),
    *("socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request", "shutil.rmtree"),
)
_events: list[str] | None = None


def _audit(event: str, arguments: tuple) -> None:
    """Record what a reader of untrusted files must not do."""
    if _events is None:
        return
    if event in _FORBIDDEN:
        _events.append(event)
    elif event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        _events.append(f"open {arguments[0]}")


def _archive(data: bytes) -> bytes:
    """A PyTorch archive around a pickle, whose checksum mutations would break."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/data/0", bytes(24))
        file.writestr("archive/version", b"3\n")
    return stream.getvalue()


def _plain(data: bytes) -> bytes:
    return data


#: Ending of the file, how its bytes are made of the fuzzer's, and the reader.
KINDS: list[tuple[str, Callable[[bytes], bytes], Callable[[Path], object]]] = [
    (".yaml", _plain, load_config),
    (".pth", _plain, load_state_dict),
    (".pth", _archive, load_state_dict),
    (".pkl", _plain, load_state_dict),
    (".safetensors", _plain, load_state_dict),
]


def one_input(data: bytes) -> bool:
    """Read one input; its first byte chooses the kind of file.

    Returns:
        Whether it was accepted.

    Raises:
        AssertionError: the reader did something that it must not.
        Exception: whatever the reader raised, if it is no ``CheckpointError``.
    """
    global _events
    if not data:
        return False
    suffix, make, read = KINDS[data[0] % len(KINDS)]
    path = FOLDER / f"input{suffix}"
    path.write_bytes(make(data[1:]))
    _events = []
    try:
        read(path)
    except CheckpointError as error:
        assert str(error).isprintable()
        return False
    finally:
        events, _events = _events, None
        assert not events, events
    return True


def seeds() -> list[bytes]:
    """Small honest files of every kind."""
    state = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3).half()}
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    files: list[tuple[int, bytes]] = []
    for text in (
        "MODEL: {ROI_HEADS: {NAME: StandardROIHeads, NUM_CLASSES: 3}}",
        "_BASE_: ../Base-RCNN-FPN.yaml\nINPUT: {MIN_SIZE_TEST: 800}\n",
        "VERSION: 1\nMODEL: {WEIGHT: a, ROI_HEADS: {NAME: StandardROIHeads}}\n",
        "_BASE_: [a.yaml]\nMODEL: &m {RPN: {IN_FEATURES: [p2, p3]}}\nX: *m\n",
    ):
        files.append((0, text.encode()))
    stream = io.BytesIO()
    torch.save({"model": state}, stream)
    files.append((1, stream.getvalue()))
    stream = io.BytesIO()
    torch.save({"model": {"w": torch.arange(6.0)}, "iteration": 5}, stream)
    with zipfile.ZipFile(stream) as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        files.append((2, archive.read(name)))
    for protocol in (2, 4, 5):
        content = {"model": arrays, "__author__": "x", "matching_heuristics": True}
        files.append((3, pickle.dumps(content, protocol)))
    files.append((3, pickle.dumps({"blobs": {"conv1_w": arrays["b"]}}, 2)))
    files.append((4, save_safetensors(state)))
    return [bytes([kind]) + content for kind, content in files]


def _target(data: bytes) -> None:
    """What libFuzzer calls; it takes a return value for a verdict of its own."""
    one_input(data)


def main() -> None:
    """Fuzz until libFuzzer's arguments say to end."""
    global FOLDER
    if atheris is None:
        print("fuzzing left out: atheris is not installed and has no wheel for this machine")
        return
    atheris.enabled_hooks.add("str")
    sys.addaudithook(_audit)
    with tempfile.TemporaryDirectory() as folder:
        FOLDER = Path(folder) / "inputs"
        corpus = Path(folder) / "corpus"
        FOLDER.mkdir()
        corpus.mkdir()
        for number, seed in enumerate(seeds()):
            assert one_input(seed) or seed[0] == 0, f"seed {number} is refused"
            (corpus / str(number)).write_bytes(seed)
        options = ["-timeout=10", "-rss_limit_mb=4096", "-max_len=16384", f"-seed={SEED}"]
        inputs = [] if any(Path(a).is_file() for a in sys.argv[1:]) else [str(corpus)]
        arguments = [sys.argv[0], *options, *sys.argv[1:], *inputs]
        atheris.Setup(arguments, _target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
