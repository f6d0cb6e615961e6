# SPDX-License-Identifier: Apache-2.0
"""A list of allowed system calls as a program of the kernel's classic BPF machine.

https://docs.kernel.org/userspace-api/seccomp_filter.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Instruction = tuple[int, int, int, int]

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
#: Bits that an error number is added to.
ERRNO = 0x00050000

_LOAD, _AND, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
# Offsets into struct seccomp_data; an argument has 64 bits, the low half first.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
# A jump's reach.
_FARTHEST = 255


@dataclass(frozen=True)
class Masked:
    """The bits of an argument under a mask have a value.

    Attributes:
        argument: its index, from 0 on. Only its lower 32 bits are looked at, as by the kernel where
            the argument is an ``int``.
        mask: which bits.
        value: of these bits.
    """

    argument: int
    mask: int
    value: int

    def code(self) -> list[Instruction]:
        """Instructions that fall through if it holds; ``_FAIL`` marks the way out."""
        return [
            (_LOAD, 0, 0, _ARGUMENTS + 8 * self.argument),
            (_AND, 0, 0, self.mask),
            (_JUMP_EQUAL, 0, _FAIL, self.value),
        ]


@dataclass(frozen=True)
class Null:
    """An argument is a null pointer: all of its 64 bits.

    Attributes:
        argument: its index, from 0 on.
    """

    argument: int

    def code(self) -> list[Instruction]:
        """See :meth:`Masked.code`."""
        low = _ARGUMENTS + 8 * self.argument
        return [
            instruction
            for half in (low, low + 4)
            for instruction in ((_LOAD, 0, 0, half), (_JUMP_EQUAL, 0, _FAIL, 0))
        ]


#: Conditions that must all hold.
Conditions = tuple[Masked | Null, ...]
_FAIL = -1


def equals(argument: int, value: int) -> Masked:
    """The lower 32 bits of an argument have a value."""
    return Masked(argument, 0xFFFFFFFF, value & 0xFFFFFFFF)


def program(
    architecture: int,
    allowed: Mapping[int, Iterable[Conditions]],
    denied: int,
    unknown: int,
    first_unknown: int,
    foreign_bit: int | None = None,
) -> list[Instruction]:
    """A filter that allows what is listed.

    Args:
        architecture: of the calls (``AUDIT_ARCH_...``); a call of another one kills the process.
        allowed: by number of the call, the cases in which it is allowed: one of them must hold. A
            case without conditions always holds.
        denied: error number of all other calls,
        unknown: of those whose number is at least ``first_unknown``.
        first_unknown: see ``unknown``.
        foreign_bit: numbers from this one on belong to another calling convention and kill.

    Returns:
        Instructions: code, jump if true, jump if false, constant.

    Raises:
        ValueError: a call has too many cases.
    """
    lines: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if foreign_bit is not None:
        lines += [(_JUMP_AT_LEAST, 0, 1, foreign_bit), (_RETURN, 0, 0, KILL_PROCESS)]
    for number, cases in allowed.items():
        block = _block(list(cases), denied)
        if len(block) > _FARTHEST:
            raise ValueError(f"call {number} has too many cases")
        lines += [(_JUMP_EQUAL, 0, len(block), number), *block]
    return [
        *lines,
        (_JUMP_AT_LEAST, 0, 1, first_unknown),
        (_RETURN, 0, 0, ERRNO | unknown),
        (_RETURN, 0, 0, ERRNO | denied),
    ]


def _block(cases: list[Conditions], denied: int) -> list[Instruction]:
    """What follows where the number of one call was found."""
    block: list[Instruction] = []
    for conditions in cases:
        case = [*(line for condition in conditions for line in condition.code())]
        case.append((_RETURN, 0, 0, ALLOW))
        for index, (code, if_true, if_false, value) in enumerate(case):
            if if_false == _FAIL:
                if_false = len(case) - index - 1
            block.append((code, if_true, if_false, value))
        if not conditions:
            return block
    return [*block, (_RETURN, 0, 0, ERRNO | denied)]
