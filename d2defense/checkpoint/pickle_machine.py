# SPDX-License-Identifier: Apache-2.0
"""A pickle reader that can reach no callable, for files that nobody vouches for.

Python's unpickler is a machine that imports and calls whatever the bytes name. This one walks the
same opcodes (:mod:`pickle_opcodes`), but a name stays a :class:`Global`, an inert pair of strings,
and "calling" one looks up a builder in a table that the reader of a format supplies. What is not in
the table is refused, and so is what only some of the readers of pickles would understand as this
one does. Nothing is allocated beyond what the bytes themselves hold.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import IO, Any

from .pickle_opcodes import Dialect, PickleError, UnsafePickleError, read_opcodes
from .tensors import TensorError

_MAX_MARKS = 1000
_KEY_TYPES = (str, int, float, bool, bytes, type(None))


@dataclass(frozen=True)
class Global:
    """A name that a pickle refers to. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Opaque:
    """Stands for an object that is admitted, but of no use as weights (a counter, a set)."""


class _Set(Opaque):
    """A set that is still being filled."""


class Buildable:
    """What a builder may return to receive, once, the state that a pickle gives it (BUILD)."""

    built = False

    def build(self, state: object) -> None:
        """Take the state.

        Raises:
            PickleError: it is not what belongs here.
        """
        if self.built:
            raise UnsafePickleError(f"its pickle sets the state of {describe(self)} twice")
        self.built = True
        self.take(state)

    def take(self, state: object) -> None:
        """Take the state, which comes for the first time."""
        raise NotImplementedError


class OrderedDictionary(dict, Buildable):
    """``collections.OrderedDict``; PyTorch hangs ``_metadata`` on that of a state dict.

    Attributes:
        metadata: what hangs on it; the pickle may still change it.
    """

    metadata: object = None

    def take(self, state: object) -> None:
        """Take PyTorch's metadata.

        Any other attribute could stand before a method of the dictionary, such as ``pop``.
        """
        if type(state) is not dict or list(state) != ["_metadata"]:
            raise UnsafePickleError("its pickle sets attributes of a dictionary")
        self.metadata = state["_metadata"]


Builder = Callable[[tuple], object]


def ordered_dictionary(arguments: tuple) -> OrderedDictionary:
    """Builder of ``collections.OrderedDict``, empty or from a list of pairs."""
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or type(pairs) is not list:
        raise UnsafePickleError("its pickle makes a dictionary of something that is no pairs")
    result = OrderedDictionary()
    for pair in pairs:
        if type(pair) not in (tuple, list) or len(pair) != 2:
            raise UnsafePickleError("its pickle makes a dictionary of something that is no pairs")
        result[_key(pair[0])] = pair[1]
    return result


def opaque(arguments: tuple) -> Opaque:
    """Builder of objects whose content does not matter, from texts and numbers."""
    for argument in arguments:
        _key(argument)
    return Opaque()


def hashed(arguments: tuple) -> Opaque:
    """Builder of sets and counters, from items that are plain values."""
    if len(arguments) > 1 or any(type(items) not in (list, dict) for items in arguments):
        raise UnsafePickleError("its pickle makes a set or a counter of something else than items")
    for items in arguments:
        for item in items:
            _key(item)
    return Opaque()


_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class PickleMachine:
    """Executes the harmless part of the pickle language.

    Args:
        dialect: what the writers of the format use of it.
        builders: what may be called, by full name, and how; None for names that may be mentioned
            but not called.
        persistent: makes an object of a persistent id; they are refused if None.
    """

    def __init__(
        self,
        dialect: Dialect,
        builders: Mapping[str, Builder | None],
        persistent: Callable[[object], object] | None = None,
    ) -> None:
        self.dialect = dialect
        # Module and name apart: "a.b" of "c" and "b" of "a.c" are not the same to every reader.
        self.builders = {Global(*n.rpartition(".")[::2]): b for n, b in builders.items()}
        self.persistent = persistent

    def load(self, stream: IO[bytes], size: int) -> Any:
        """The value of the pickle between the stream's position and its end at ``size``.

        Raises:
            UnsafePickleError: it asks for anything beyond the builders.
            PickleError: it is broken, or too long.
            TensorError: raised by a builder.
        """
        try:
            return self._run(stream, size)
        except (PickleError, TensorError):
            raise
        except Exception as error:  # an opcode without its operands fails in many ways
            raise PickleError(f"its pickle is broken: {type(error).__name__}: {error}") from None

    def _run(self, stream: IO[bytes], size: int) -> Any:
        stack: list[Any] = []
        marked: list[list[Any]] = []
        memo = _Memo()
        for name, argument in read_opcodes(stream, size, self.dialect):
            if name in _VALUES:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo.put(argument, stack[-1])
            elif name == "MEMOIZE":
                memo.put(len(memo), stack[-1])
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "MARK":
                if len(marked) >= _MAX_MARKS:
                    raise PickleError("its pickle is nested too deep")
                marked.append(stack)
                stack = []
            elif name == "TUPLE":
                items, stack = stack, marked.pop()
                stack.append(tuple(items))
            elif name in _TUPLES:
                items = [stack.pop() for _ in range(_TUPLES[name])]
                stack.append(tuple(reversed(items)))
            elif name == "EMPTY_DICT":
                stack.append({})
            elif name == "EMPTY_LIST":
                stack.append([])
            elif name == "EMPTY_SET":
                stack.append(_Set())
            elif name == "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._set_items(stack[-1], [key, value])
            elif name == "SETITEMS":
                items, stack = stack, marked.pop()
                self._set_items(stack[-1], items)
            elif name == "APPEND":
                item = stack.pop()
                self._extend(stack[-1], [item])
            elif name == "APPENDS":
                items, stack = stack, marked.pop()
                self._extend(stack[-1], items)
            elif name == "ADDITEMS":
                items, stack = stack, marked.pop()
                if type(stack[-1]) is not _Set:
                    raise UnsafePickleError("its pickle adds items to something that is no set")
                hashed((items,))
            elif name == "GLOBAL":
                stack.append(self._global(*argument))
            elif name == "STACK_GLOBAL":
                attribute, module = stack.pop(), stack.pop()
                stack.append(self._global(module, attribute))
            elif name == "REDUCE":
                arguments = stack.pop()
                stack[-1] = self._call(stack[-1], arguments)
            elif name == "BUILD":
                state = stack.pop()
                if not isinstance(stack[-1], Buildable):
                    raise UnsafePickleError(
                        f"its pickle sets the state of {describe(stack[-1])}; it was not executed"
                    )
                stack[-1].build(state)
            elif name == "BINPERSID" and self.persistent is not None:
                stack[-1] = self.persistent(stack[-1])
            elif name == "STOP":
                if marked or len(stack) != 1:
                    raise PickleError("its pickle is broken: it ends with a stack")
                return stack[0]
            else:
                raise UnsafePickleError(f"its pickle uses the opcode {name}; it was not executed")
        raise AssertionError("the last opcode is STOP")

    def _global(self, module: object, name: object) -> Global:
        if type(module) is not str or type(name) is not str:
            raise PickleError("its pickle is broken: it names something by no string")
        found = Global(module, name)
        if found not in self.builders:
            raise UnsafePickleError(
                f"its pickle asks for more than tensors ({str(found)[:100]}); it was not executed"
            )
        return found

    def _call(self, function: object, arguments: object) -> object:
        builder = self.builders[function] if isinstance(function, Global) else None
        if builder is None or type(arguments) is not tuple:
            raise UnsafePickleError(f"its pickle calls {describe(function)}; it was not executed")
        return builder(arguments)

    @staticmethod
    def _set_items(target: object, items: list[Any]) -> None:
        if type(target) not in (dict, OrderedDictionary):
            raise UnsafePickleError("its pickle sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    @staticmethod
    def _extend(target: object, items: list[Any]) -> None:
        if type(target) is not list:
            raise UnsafePickleError("its pickle appends to something that is no list")
        target.extend(items)


class _Memo(dict[int, Any]):
    """What a pickle has put aside, in the order in which picklers do it.

    They count from 0, and in Python 2 from 1. Readers that keep a table would grow it to the
    highest number.
    """

    _first = 0

    def put(self, number: int, value: Any) -> None:
        """Put ``value`` aside under the next number."""
        if not self and number == 1:
            self._first = 1
        if number != self._first + len(self):
            raise UnsafePickleError("its pickle numbers what it puts aside in no order")
        self[number] = value


def _key(key: object) -> Hashable:
    # Hashing nested tuples that share their parts takes time exponential in their depth.
    if type(key) in _KEY_TYPES:
        return key
    raise PickleError(f"its pickle has {describe(key)} as the key of a dictionary")


def describe(value: object) -> str:
    """What something of a pickle is, for a message."""
    return str(value)[:100] if isinstance(value, Global) else f"a {type(value).__name__.strip('_')}"
