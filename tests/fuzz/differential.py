# SPDX-License-Identifier: Apache-2.0
"""Compares this project's readers of pickles and archives with the readers that users have.

Whatever the bytes: what :class:`PickleMachine` accepts, Python's C unpickler (from memory, from a
buffered file and from an unbuffered one), its Python unpickler and, for PyTorch's dialect,
PyTorch's reader of weights must read to the same end, with the same names, calls and states on the
way, and to the same value. The Python unpickler and the machine are compared after every opcode;
the C unpickler, which shows no opcode, after every prefix of a short stream. Names are never
imported: each reader gets stubs that record what happens to them.

As a program it mutates seeds for some seconds: ``python tests/fuzz/differential.py 60``.
"""

from __future__ import annotations

import collections
import functools
import io
import itertools
import pickle
import pickletools
import random
import struct
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import _weights_only_unpickler as torch_reader
from torch.utils.serialization import config

from d2defense.checkpoint import CheckpointError, load_state_dict
from d2defense.checkpoint import pickle_machine as machine_module
from d2defense.checkpoint.pickle_machine import Buildable, OrderedDictionary, PickleMachine
from d2defense.checkpoint.pickle_opcodes import BLOB_BYTES, Blob, Dialect, PickleError
from d2defense.checkpoint.tensors import TensorError

#: Names that the stubs stand for, as a table of builders has them.
NAMES = (
    *("numpy.ndarray", "numpy.dtype", "numpy._core.multiarray._reconstruct", "_codecs.encode"),
    *("__builtin__.bytes", "torch.FloatStorage", "torch._utils._rebuild_tensor_v2", "torch.Size"),
)
ORDERED = "collections.OrderedDict"
ZOO = Dialect(protocols=frozenset((2, 3, 4, 5)), byte_strings=True)
TORCH = Dialect(protocols=frozenset((2,)), byte_strings=False)
# Longer streams would take the C unpickler too many prefixes.
_PREFIX_BYTES = 300


# What happens in a reader -------------------------------------------------------------------------


class Log:
    """What a reader did, in order: names asked for, calls, states, persistent ids."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    def add(self, kind: str, *details: object) -> None:
        """Record an event with its details as they are now."""
        self.events.append((kind, *map(plain, details)))


class Made:
    """What a stub was called to make."""

    def __init__(self, log: Log, what: str) -> None:
        self.log, self.what = log, what

    def __setstate__(self, state: object) -> None:
        self.log.add("state", self.what, state)


class OurMade(Made, Buildable):
    """The same for the machine."""

    def take(self, state: object) -> None:
        """Record the state."""
        self.__setstate__(state)


class Name:
    """Stands for a name; calling it makes something."""

    def __init__(self, log: Log, name: str) -> None:
        self.log, self.name = log, name

    def __call__(self, *arguments: object) -> object:
        self.log.add("call", self.name, arguments)
        if self.name == ORDERED:
            return collections.OrderedDict(*arguments)
        return Made(self.log, self.name)


def plain(value: object, around: tuple[int, ...] = ()) -> object:
    """``value`` as nested tuples that say the same for the same thing in every reader."""
    if id(value) in around:
        return ("the container", len(around) - around.index(id(value)))
    within = (*around, id(value))
    if isinstance(value, OrderedDictionary | collections.OrderedDict):
        ours = isinstance(value, OrderedDictionary)
        state = {"_metadata": value.metadata} if ours and value.built else vars(value)
        items = [(plain(k, within), plain(v, within)) for k, v in value.items()]
        return ("ordered", items, [] if ours and not value.built else plain(state, within)[1])
    if type(value) is dict:
        return ("dict", [(plain(k, within), plain(v, within)) for k, v in value.items()])
    if type(value) in (list, tuple):
        return (type(value).__name__, [plain(item, within) for item in value])
    if isinstance(value, Made):
        return ("made", value.what)
    if value is collections.OrderedDict:  # which PyTorch's reader must be given itself
        return ("name", ORDERED)
    if isinstance(value, Name | machine_module.Global):
        return ("name", value.name if isinstance(value, Name) else str(value))
    if isinstance(value, set | machine_module.Opaque):
        return ("set",)
    if isinstance(value, str | bytes | bytearray):
        return _plain_text(value)
    return (type(value).__name__, repr(value))


def _plain_text(value: str | bytes | bytearray) -> tuple:
    # Long strings of bytes stay in the file, where those of Python 2 look like others.
    if len(value) <= BLOB_BYTES:
        return ("str", value) if isinstance(value, str) else ("bytes", bytes(value))
    if isinstance(value, str):
        try:
            return ("long", value.encode("latin-1"))
        except UnicodeEncodeError:
            return ("long", value.encode("utf-8", "surrogatepass"))
    return ("long", bytes(value))


# The readers --------------------------------------------------------------------------------------


class Reading:
    """What a reader made of a stream."""

    def __init__(self) -> None:
        self.log = Log()
        self.value: object = None
        #: Opcode, depth of the stack and its top, after each opcode.
        self.steps: list[tuple] = []


def ours(data: bytes, dialect: Dialect) -> Reading:
    """What the machine makes of a stream.

    Raises:
        PickleError, TensorError: it refuses it.
    """
    reading = Reading()
    log = reading.log

    def make(name: str, arguments: tuple) -> object:
        log.add("call", name, arguments)
        return OurMade(log, name)

    def ordered(arguments: tuple) -> object:
        log.add("call", ORDERED, arguments)
        return machine_module.ordered_dictionary(arguments)

    def persistent(identity: object) -> object:
        if type(identity) is not tuple or identity[:1] != ("storage",):
            raise PickleError("no storage")
        log.add("persistent id", identity)
        return OurMade(log, "persistent")

    class Machine(PickleMachine):
        def _global(self, module: object, name: object) -> machine_module.Global:
            found = super()._global(module, name)
            log.add("name", found.module, found.name)
            return found

    builders = {name: functools.partial(make, name) for name in NAMES} | {ORDERED: ordered}
    with _traced(reading, data):
        reading.value = plain(
            Machine(dialect, builders, persistent).load(io.BytesIO(data), len(data))
        )
    return reading


@contextmanager
def _traced(reading: Reading, data: bytes) -> Iterator[None]:
    """Let the machine's opcodes pass through here, with long bytes in place of where they are."""
    before = machine_module.read_opcodes

    def traced(stream: io.BytesIO, size: int, dialect: Dialect) -> Iterator[tuple[str, Any]]:
        frame = sys._getframe(1)
        previous = None
        for name, argument in before(stream, size, dialect):
            if previous is not None:
                reading.steps.append((previous, *_stack_of(frame.f_locals)))
            previous = name
            if isinstance(argument, Blob):
                argument = data[argument.offset : argument.offset + argument.length]
            yield name, argument

    machine_module.read_opcodes = traced
    try:
        yield
    finally:
        machine_module.read_opcodes = before


def _stack_of(variables: dict[str, Any]) -> tuple[int, object]:
    """Depth and top of the machine's stack."""
    stack, marked = variables["stack"], variables["marked"]
    return sum(map(len, marked)) + len(stack), plain(stack[-1]) if stack else None


def _hooked(base: type, reading: Reading) -> type:
    """An unpickler whose names are stubs."""

    class Unpickler(base):
        def find_class(self, module: str, name: str) -> object:
            reading.log.add("name", module, name)
            return Name(reading.log, f"{module}.{name}")

        def persistent_load(self, identity: object) -> object:
            reading.log.add("persistent id", identity)
            return Made(reading.log, "persistent")

    return Unpickler


def c_reading(stream: Any) -> Reading:
    """What the C unpickler makes of a stream."""
    reading = Reading()
    reading.value = plain(_hooked(pickle.Unpickler, reading)(stream, encoding="latin1").load())
    return reading


def python_reading(data: bytes) -> Reading:
    """What the Python unpickler makes of a stream, with its steps."""
    reading = Reading()
    base = _hooked(pickle._Unpickler, reading)

    class Dispatch(dict):
        def __getitem__(self, key: int) -> Callable[[Any], None]:
            act = super().__getitem__(key)
            name = pickletools.code2op[chr(key)].name

            def step(unpickler: Any) -> None:
                act(unpickler)
                if name not in ("PROTO", "FRAME"):
                    stacks = [*unpickler.metastack, unpickler.stack]
                    top = plain(unpickler.stack[-1]) if unpickler.stack else None
                    reading.steps.append((name, sum(map(len, stacks)), top))

            return step

    base.dispatch = Dispatch(pickle._Unpickler.dispatch)
    stream = io.BytesIO(data)
    reading.value = plain(base(stream, encoding="latin1").load())
    assert stream.tell() == len(data), "the Python unpickler stops elsewhere"
    return reading


def torch_reading(data: bytes) -> Reading:
    """What PyTorch's reader of weights makes of a stream."""
    reading = Reading()
    # It knows names of Python 2 by those of Python 3.
    allowed = {n.replace("__builtin__", "builtins"): Name(reading.log, n) for n in NAMES}
    allowed[ORDERED] = collections.OrderedDict
    # The stubs take states in every reader; this one asks for the class.
    allowed["stub"] = Made
    before = torch_reader._get_allowed_globals
    torch_reader._get_allowed_globals = lambda: allowed
    try:
        unpickler = torch_reader.Unpickler(io.BytesIO(data), encoding="utf-8")
        unpickler.persistent_load = lambda identity: Made(reading.log, "persistent")
        reading.value = plain(unpickler.load())
    finally:
        torch_reader._get_allowed_globals = before
    return reading


def compare_pickle(data: bytes, dialect: Dialect) -> bool:
    """Read a stream with every reader.

    Returns:
        Whether the machine accepts it.

    Raises:
        AssertionError: it does, and another reader understands something else.
    """
    try:
        machine = ours(data, dialect)
    except (PickleError, TensorError):
        return False
    stream = io.BytesIO(data)
    for where, reading in {
        "from memory": c_reading(stream),
        "from a buffered file": c_reading(io.BufferedReader(io.BytesIO(data), 16)),
        "from a large buffer": c_reading(io.BufferedReader(io.BytesIO(data), 1 << 16)),
        "from an unbuffered file": c_reading(_Unbuffered(data)),
    }.items():
        _agree(machine, reading, f"the C unpickler {where}")
    assert stream.tell() == len(data), "the C unpickler stops elsewhere"
    python = python_reading(data)
    _agree(machine, python, "the Python unpickler")
    for mine, other in zip(machine.steps, python.steps, strict=True):
        assert mine == other, f"after an opcode: {mine} here, {other} in Python's unpickler"
    if dialect is TORCH:
        found = torch_reading(data)
        assert found.value == machine.value, "PyTorch's reader of weights sees another value"
    if len(data) <= _PREFIX_BYTES and b"\x95" not in data:
        _compare_prefixes(data, python.steps)
    return True


class _Unbuffered:
    """A file that gives what it is asked for, and cannot be looked into."""

    def __init__(self, data: bytes) -> None:
        stream = io.BytesIO(data)
        self.read, self.readline = stream.read, stream.readline


def _agree(machine: Reading, other: Reading, who: str) -> None:
    assert other.log.events == machine.log.events, f"{who} does something else"
    assert other.value == machine.value, f"{who} sees another value"


def _compare_prefixes(data: bytes, steps: list[tuple]) -> None:
    """Stop the C unpickler after each opcode; the top of its stack must be that of the steps."""
    ends = [position for _, _, position in pickletools.genops(data)][2:]
    for end, (name, _, top) in zip(ends, steps, strict=False):
        if top is None or name == "MARK":
            continue  # nothing to return
        reading = c_reading(io.BytesIO(data[:end] + b"."))
        assert reading.value == top, f"after {name}: {top} here, {reading.value} in C"


# Whole files --------------------------------------------------------------------------------------


def compare_zoo_file(data: bytes, folder: Path) -> bool:
    """Load a ``.pkl`` here and as Detectron2 does.

    Returns:
        Whether it is accepted here.

    Raises:
        AssertionError: it is, and Python's unpickler asks for other names or finds other arrays.
    """
    path = folder / "model.pkl"
    path.write_bytes(data)
    try:
        state = load_state_dict(path)
    except CheckpointError:
        return False
    with path.open("rb") as stream:
        content = Guarded(stream, encoding="latin1").load()
    if not ("model" in content and "__author__" in content):
        content = {"model": content.get("blobs", content)}
    arrays = {k: v for k, v in content["model"].items() if not k.endswith("_momentum")}
    if all(name.startswith("module.") for name in arrays):
        arrays = {name.removeprefix("module."): array for name, array in arrays.items()}
    native = {k: torch.from_numpy(v.astype(v.dtype.newbyteorder("="))) for k, v in arrays.items()}
    _same_tensors(state, native)
    return True


def compare_torch_file(data: bytes, folder: Path) -> bool:
    """Load a ``.pth`` here and with ``torch.load`` in all its ways.

    Returns:
        Whether it is accepted here.

    Raises:
        AssertionError: it is, and PyTorch asks for other names or finds other tensors.
    """
    path = folder / "model.pth"
    path.write_bytes(data)
    try:
        state = load_state_dict(path)
    except CheckpointError:
        return False
    guard = types.ModuleType("guard")
    guard.Unpickler, guard.load = Guarded, None
    loaded = [
        torch.load(path, map_location="cpu", weights_only=True),
        torch.load(path, map_location="cpu", weights_only=False, pickle_module=guard),
        torch.load(path, map_location="cpu", weights_only=True, mmap=True),
    ]
    with config.patch("load.calculate_storage_offsets", True):
        loaded.append(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
    for content in loaded:
        tensors = content.get("model", content)
        if all(name.startswith("module.") for name in tensors):
            tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
        _same_tensors(state, tensors)
    return True


class Guarded(pickle.Unpickler):
    """The C unpickler, which must find no name that is not one of weights."""

    def find_class(self, module: str, name: str) -> object:
        """The object of this name."""
        assert module.partition(".")[0] in ("numpy", "torch", "collections", "_codecs") or (
            (module, name) in {("__builtin__", "bytes"), ("__builtin__", "set")}
        ), f"{module}.{name}"
        assert name in {
            *("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer", "encode", "bytes"),
            *("OrderedDict", "Counter", "set", "_rebuild_tensor_v2", "_rebuild_parameter", "Size"),
            *("device", "_rebuild_tensor", "_get_layout"),
        }, f"{module}.{name}"
        return super().find_class(module, name)


def _same_tensors(state: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(state) == list(other), "other names"
    for name, tensor in state.items():
        same = tensor.dtype == other[name].dtype and tensor.shape == other[name].shape
        assert same and _bits(tensor) == _bits(other[name]), f"other numbers of {name!r}"


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


# Seeds and mutations ------------------------------------------------------------------------------

VALUES: list[Any] = [
    {"model": {"a": 1, "b": -2.5, "c": None}, "__author__": "x", "n": [1, (2, 3), ()], "t": True},
    [70_000, -1, 255, 1 << 40, -(1 << 70), 0.1, float("inf"), "text", "größe", "", False],
    ({"k": {"k": {"k": [[], {}, ()]}}}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
    {"long": "y" * 300, "longer": "z" * 3000, "again": ["y" * 300] * 3},
    collections.OrderedDict([("x", 1), ("y", collections.OrderedDict(z=[]))]),
    [b"", b"bytes", b"b" * 2000, {"b": b"\x80\x04."}],
    {str(i): [i] * 3 for i in range(40)},
]


def pickles() -> list[bytes]:
    """Streams that honest picklers write, in all protocols and with every kind of opcode."""
    found = []
    for value, protocol in itertools.product(VALUES, (2, 3, 4, 5)):
        found.append(pickle.dumps(value, protocol))
        found.append(pickletools.optimize(found[-1]))
        stream = io.BytesIO()
        pickle._Pickler(stream, protocol).dump(value)
        found.append(stream.getvalue())
    # Calls, states and persistent ids, and strings of Python 2.
    found += [
        b"\x80\x02cnumpy\ndtype\nq\x00U\x02f4q\x01\x89\x88\x87Rq\x02(K\x03U\x01<Nt\x62.",
        b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R(K\x03K\x01tb.",
        b"\x80\x02}(U\x01aT\x05\x00\x00\x00bcd\xe9fq\x01X\x01\x00\x00\x00cj\x01\x00\x00\x00u.",
        b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x03\x00\x00\x00cpuK\x04tQ.",
        b"\x80\x02ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00_metadata}sb.",
        b"\x80\x02ccollections\nOrderedDict\n](K\x01K\x02\x86]K\x03aK\x04ae\x85R.",
        b"\x80\x04\x8c\x05numpy\x94\x8c\x05dtype\x94\x93\x94\x8c\x02f4\x94\x85\x94R\x94N\x86\x94.",
        b"\x80\x04\x8f\x94(K\x01K\x02\x90.",
        b"\x80\x05\x96\x03\x00\x00\x00\x00\x00\x00\x00abc\x94.",
        b"\x80\x04(K\x01\x94h\x00K\x02t.",
    ]
    return found


def tokens(data: bytes) -> list[bytes]:
    """The opcodes of a stream with their arguments, as one sees them who ignores frames."""
    positions = [position for _, _, position in pickletools.genops(data)]
    return [data[a:b] for a, b in itertools.pairwise([*positions, len(data)])]


def frame(content: bytes, wrong: int = 0) -> bytes:
    """FRAME around this content, its length false by ``wrong``."""
    return b"\x95" + struct.pack("<Q", max(0, len(content) + wrong)) + content


def mutated(data: bytes, pool: list[bytes], chance: random.Random) -> bytes:
    """A stream that differs from ``data`` in one or a few places."""
    try:
        parts = tokens(data)
    except (ValueError, EOFError, KeyError):
        parts = [data]
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        place = chance.randrange(len(parts) + 1)
        kind = chance.randrange(11)
        if kind == 0:
            parts[place : place + 1] = []
        elif kind == 1:
            parts.insert(place, chance.choice(pool))
        elif kind == 2:
            parts[place : place + 1] = [chance.choice(pool)]
        elif kind == 3:
            parts[place : place + 2] = reversed(parts[place : place + 2])
        elif kind == 4:  # whole opcodes in a frame
            end = chance.randrange(place, len(parts) + 1)
            parts[place:end] = [frame(b"".join(parts[place:end]))]
        elif kind == 5:  # a frame of a false length
            end = chance.randrange(place, len(parts) + 1)
            parts[place:end] = [frame(b"".join(parts[place:end]), chance.randrange(-9, 10))]
        elif kind == 6:  # other frames
            parts = [part for part in parts if part[:1] != b"\x95"]
        elif kind == 7:
            parts[place:place] = [b"\x80", bytes([chance.randrange(7)])]
        elif kind == 8:
            parts.append(chance.choice((b"N.", b"\x00", parts[0])))
        else:
            content = bytearray(b"".join(parts))
            for _ in range(chance.randrange(1, 4)):
                position = chance.randrange(max(1, len(content)))
                if content:
                    content[position] = chance.choice(
                        (chance.randrange(256), content[position] ^ 1)
                    )
            parts = [bytes(content)]
        parts = parts or [b"."]
    return b"".join(parts)


def framed_elsewhere(data: bytes, chance: random.Random) -> bytes:
    """The same opcodes in other frames; sometimes one of them is false by a few bytes."""
    parts = [part if part[:1] != b"\x95" else b"" for part in tokens(data)]
    start, *rest = parts
    wrong = chance.choice((0, 0, 0, chance.randrange(-6, 7)))
    found, position = start, 0
    while position < len(rest):
        end = position + chance.randrange(1, 12)
        content = b"".join(rest[position:end])
        found += frame(content, wrong) if content and chance.randrange(3) else content
        position = end
    return found


def zoo_files() -> list[bytes]:
    """Small honest ``.pkl`` files."""
    numbers = np.arange(24.0).reshape(2, 3, 4)
    arrays = {"a.weight": numbers.astype("f4"), "b": numbers.astype(">f8"), "c": np.ones(3, "i8")}
    arrays |= {"f": np.asfortranarray(numbers), "k": numbers.transpose(1, 0, 2)[:, :, ::2]}
    arrays |= {"a again": arrays["a.weight"], "long": np.arange(700.0)}
    contents = [
        {"model": arrays, "__author__": "x", "iteration": np.int64(3)},
        {"blobs": {"conv1_w": arrays["c"], "conv1_w_momentum": arrays["c"]}},
        {"model": {f"module.{k}": v for k, v in arrays.items()}, "__author__": ""},
    ]
    return [pickle.dumps(c, p) for c, p in itertools.product(contents, (2, 3, 4, 5))]


def torch_files() -> list[bytes]:
    """Small honest ``.pth`` files."""
    numbers = torch.arange(24.0)
    states = [
        {
            "w": numbers,
            "part": numbers[3:9].reshape(2, 3).t(),
            "h": numbers.half(),
            "n": numbers[:0],
        },
        torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict(),
    ]
    found = []
    for content in (states[0], states[1], {"model": states[1], "iteration": 3, "x": {1, 2}}):
        stream = io.BytesIO()
        torch.save(content, stream)
        found.append(stream.getvalue())
    return found


def mutated_archive(data: bytes, chance: random.Random) -> bytes:
    """An archive that differs in some bytes, most of them of its headers."""
    content = bytearray(data)
    starts = [
        position
        for mark in (b"PK\x03\x04", b"PK\x01\x02", b"PK\x07\x08", b"PK\x06\x06", b"PK\x05\x06")
        for position in _all(data, mark)
    ]
    for _ in range(chance.choice((1, 1, 2, 3))):
        if chance.randrange(4):
            position = chance.choice(starts) + chance.randrange(4, 60)
        else:
            position = chance.randrange(len(content))
        if position < len(content):
            content[position] = chance.choice(
                (0, 1, 0xFF, chance.randrange(256), content[position] ^ (1 << chance.randrange(8)))
            )
    return bytes(content)


def _all(data: bytes, mark: bytes) -> list[int]:
    found, position = [], data.find(mark)
    while position >= 0:
        found.append(position)
        position = data.find(mark, position + 1)
    return found


def run(
    rounds: int, seed: int, folder: Path, seconds: float = float("inf")
) -> dict[str, list[int]]:
    """Mutate the seeds and compare all readers on the results.

    Args:
        rounds: mutations of each seed.
        seed: of the random choices.
        folder: for files.
        seconds: to stop after.

    Returns:
        Of each kind of input, how many were accepted and how many were tried.

    Raises:
        AssertionError: readers understood an input differently; it names the input.
    """
    chance = random.Random(seed)
    streams, zoo, archives = pickles(), zoo_files(), torch_files()
    pool = sorted({token for data in streams for token in tokens(data)[1:]})
    kinds: dict[str, tuple[list[bytes], Callable, Callable]] = {
        "streams": (
            streams,
            lambda data: chance.choice((framed_elsewhere, lambda d, c: mutated(d, pool, c)))(
                data, chance
            ),
            lambda data: compare_pickle(data, TORCH) | compare_pickle(data, ZOO),
        ),
        "zoo files": (
            zoo,
            lambda data: mutated(data, pool, chance),
            lambda data: compare_zoo_file(data, folder),
        ),
        "archives": (
            archives,
            lambda data: mutated_archive(data, chance),
            lambda data: compare_torch_file(data, folder),
        ),
    }
    counts = {kind: [0, 0] for kind in kinds}
    end = time.monotonic() + seconds
    for number in range(rounds + 1):
        for kind, (seeds, change, compare) in kinds.items():
            for data in seeds:
                if time.monotonic() > end:
                    return counts
                content = change(data) if number else data
                try:
                    accepted = compare(content)
                except Exception as error:
                    raise AssertionError(f"{kind}: {error!r} of {content!r}") from error
                assert accepted or number, f"{kind}: an honest one is refused: {content!r}"
                counts[kind][0] += accepted
                counts[kind][1] += 1
    return counts


def main() -> None:
    """Compare for as many seconds as the command line says, from its seed (none or 0: any)."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    seed = (int(sys.argv[2]) if len(sys.argv) > 2 else 0) or time.time_ns() % 1_000_000
    print(f"seed {seed}")
    with tempfile.TemporaryDirectory() as folder:
        for kind, (accepted, tried) in run(10**9, seed, Path(folder), seconds).items():
            print(f"{kind}: {tried} inputs, {accepted} of them accepted, no difference")


if __name__ == "__main__":
    main()
