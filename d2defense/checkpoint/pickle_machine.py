# SPDX-License-Identifier: Apache-2.0
"""A pickle reader that can reach no callable, for files that nobody vouches for.

Python's unpickler is a machine that imports and calls whatever the bytes name. This one walks the
same opcodes (:func:`pickletools.genops`), but a name stays a :class:`Global`, an inert pair of
strings, and "calling" one looks up a builder in a table that the reader of a format supplies. What
is not in the table is refused. Nothing is allocated beyond what the bytes themselves hold.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Hashable, Mapping
from typing import IO, Any, NamedTuple

from .tensors import TensorError

MAX_OPCODES = 2_000_000
_MAX_MARKS = 1000
_KEY_TYPES = (str, int, float, bool, bytes, type(None))


class Global(NamedTuple):
    """A name that a pickle refers to. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class PickleError(ValueError):
    """A pickle that is broken, or of no use as weights."""


class UnsafePickleError(PickleError):
    """A pickle that asks for something that could run code."""


class Buildable:
    """What a builder may return to receive the state that a pickle gives it (opcode BUILD)."""

    def build(self, state: Any) -> None:
        """Take the state.

        Raises:
            PickleError: it is not what belongs here.
        """
        raise UnsafePickleError(f"its pickle sets the state of a {type(self).__name__}")


class Opaque(Buildable):
    """Stands for an object that is admitted, but of no use as weights (a counter, a set)."""

    def build(self, state: Any) -> None:
        """Ignore the state."""


class Dictionary(dict, Buildable):
    """A plain or ordered dictionary; PyTorch hangs ``_metadata`` on that of a state dict."""

    def build(self, state: Any) -> None:
        """Ignore the state, which must be plain attributes."""
        if not isinstance(state, dict):
            raise UnsafePickleError("its pickle sets a state on a dictionary")


Builder = Callable[[tuple], object]


def dictionary(arguments: tuple) -> Dictionary:
    """Builder of ``collections.OrderedDict``, empty or from pairs."""
    result = Dictionary()
    for pairs in arguments:
        for pair in pairs:
            if not isinstance(pair, tuple | list) or len(pair) != 2:
                raise PickleError("its pickle makes a dictionary of something that is no pairs")
            result[_key(pair[0])] = pair[1]
    return result


def opaque(arguments: tuple) -> Opaque:
    """Builder of objects whose content does not matter."""
    return Opaque()


def hashed(arguments: tuple) -> Opaque:
    """Builder of sets and counters, from items that are plain values."""
    for items in arguments:
        if isinstance(items, list | tuple | dict):
            for item in items:
                _key(item)
        elif not isinstance(items, str | bytes):
            raise PickleError("its pickle makes a set or a counter of something that has no items")
    return Opaque()


_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_IGNORED = frozenset(("PROTO", "FRAME"))


class PickleMachine:
    """Executes the harmless part of the pickle language.

    Args:
        builders: what may be called, by full name, and how; None for names that may be mentioned
            but not called.
        persistent: makes an object of a persistent id; they are refused if None.
    """

    def __init__(
        self,
        builders: Mapping[str, Builder | None],
        persistent: Callable[[object], object] | None = None,
    ) -> None:
        self.builders = builders
        self.persistent = persistent

    def load(self, stream: IO[bytes]) -> Any:
        """The value of the pickle at the stream's position; stops right behind it.

        Raises:
            UnsafePickleError: it asks for anything beyond the builders.
            PickleError: it is broken, or too long.
            TensorError: raised by a builder.
        """
        try:
            return self._run(stream)
        except (PickleError, TensorError):
            raise
        except Exception as error:  # an opcode without its operands fails in many ways
            raise PickleError(f"its pickle is broken: {type(error).__name__}: {error}") from None

    def _run(self, stream: IO[bytes]) -> Any:
        stack: list[Any] = []
        marked: list[list[Any]] = []
        memo: dict[int, Any] = {}
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            name = opcode.name
            if count > MAX_OPCODES:
                raise PickleError(f"its pickle has more than {MAX_OPCODES} opcodes")
            if name in _VALUES:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
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
                stack.append(Dictionary())
            elif name == "EMPTY_LIST":
                stack.append([])
            elif name == "EMPTY_SET":
                stack.append(Opaque())
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
                if not isinstance(stack[-1], Opaque):
                    raise UnsafePickleError("its pickle adds items to something that is no set")
                hashed((items,))
            elif name == "GLOBAL":
                stack.append(self._global(*argument.split(" ", 1)))
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
                        f"its pickle sets the state of {_describe(stack[-1])}; it was not executed"
                    )
                stack[-1].build(state)
            elif name == "BINPERSID" and self.persistent is not None:
                stack[-1] = self.persistent(stack[-1])
            elif name == "STOP":
                if marked or len(stack) != 1:
                    raise PickleError("its pickle is broken: it ends with a stack")
                return stack[0]
            elif name not in _IGNORED:
                raise UnsafePickleError(f"its pickle uses the opcode {name}; it was not executed")
        raise PickleError("its pickle has no end")

    def _global(self, module: object, name: object) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise PickleError("its pickle is broken: it names something by no string")
        found = Global(module, name)
        if str(found) not in self.builders:
            raise UnsafePickleError(
                f"its pickle asks for more than tensors ({str(found)[:100]}); it was not executed"
            )
        return found

    def _call(self, function: object, arguments: object) -> object:
        builder = self.builders[str(function)] if isinstance(function, Global) else None
        if builder is None or not isinstance(arguments, tuple):
            raise UnsafePickleError(f"its pickle calls {_describe(function)}; it was not executed")
        return builder(arguments)

    @staticmethod
    def _set_items(target: object, items: list[Any]) -> None:
        if not isinstance(target, Dictionary | Opaque):
            raise UnsafePickleError("its pickle sets items of something that is no dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            _key(key)
            if isinstance(target, Dictionary):
                target[key] = value

    @staticmethod
    def _extend(target: object, items: list[Any]) -> None:
        if type(target) is not list:
            raise UnsafePickleError("its pickle appends to something that is no list")
        target.extend(items)


def _key(key: object) -> Hashable:
    # Hashing nested tuples that share their parts takes time exponential in their depth.
    if isinstance(key, _KEY_TYPES):
        return key
    raise PickleError(f"its pickle has {_describe(key)} as the key of a dictionary")


def _describe(value: object) -> str:
    return str(value)[:100] if isinstance(value, Global) else f"a {type(value).__name__}"
