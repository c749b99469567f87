"""A seccomp filter: no socket, no other process, no file opened for writing, however the code inside asks for them.

Decides the filter's program. The calls and their numbers are in `system_calls.py`; when it is put on, and that it holds,
is the business of `confinement.py` and `breakout.py`. A forbidden call fails with EPERM, so that libraries which try one
for convenience go on. Source: seccomp(2), and Documentation/userspace-api/seccomp_filter.rst of Linux.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final

from .system_calls import CALLS, UNIFIED_ALLOWED, UNIFIED_FROM, Calls

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_DENY = 0x00050000 | errno.EPERM
_ABSENT = 0x00050000 | errno.ENOSYS
_X32_FROM = 0x40000000
_CLONE_THREAD = 0x00010000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_PR_SET_PDEATHSIG = 1
_SET_MODE_FILTER, _ALL_THREADS = 1, 1

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, constant."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def restrict_calls(libc: ctypes.CDLL) -> bool:
    """Put the filter on this process and all its threads for good; False if the system or the machine has none.

    `no_new_privs` must be set.
    """
    calls = CALLS.get(platform.machine())
    if calls is None:
        return False
    program = filter_of(calls, os.getpid())
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in program))
    argument = _Program(len(program), ctypes.addressof(code))
    result: int = libc.syscall(calls.seccomp, _SET_MODE_FILTER, _ALL_THREADS, ctypes.byref(argument))
    return result == 0


def filter_of(calls: Calls, process: int) -> tuple[Instruction, ...]:
    """Write the filter for a kind of machine and for one process, which may signal only itself."""
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_AT),
        (_EQUAL, 1, 0, calls.audit_arch),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32_FROM),
        (_RETURN, 0, 0, _ABSENT),
    ]
    for number in UNIFIED_ALLOWED:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    program += [(_AT_LEAST, 0, 1, UNIFIED_FROM), (_RETURN, 0, 0, _ABSENT)]
    for number in calls.forbidden:
        program += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    for number, index in calls.opens:
        program += _unless(number, index, _ANY_BIT, _WRITES)
    program += _only_if(calls.clone, 0, _ANY_BIT, _CLONE_THREAD)
    for number in calls.signals:
        program += _only_if(number, 0, _EQUAL, process)
    program += _unless(calls.prctl, 0, _EQUAL, _PR_SET_PDEATHSIG)
    program += _only_if(calls.prlimit, 0, _EQUAL, 0)
    program.append((_RETURN, 0, 0, _ALLOW))
    return tuple(program)


def _argument(number: int, index: int) -> list[Instruction]:
    """Skip the three instructions of a decision, but for this call; its argument's low half is then looked at."""
    return [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * index)]


def _unless(number: int, index: int, test: int, value: int) -> list[Instruction]:
    return [
        *_argument(number, index),
        (test, 0, 1, value),
        (_RETURN, 0, 0, _DENY),
        (_RETURN, 0, 0, _ALLOW),
    ]


def _only_if(number: int, index: int, test: int, value: int) -> list[Instruction]:
    return [
        *_argument(number, index),
        (test, 0, 1, value),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _DENY),
    ]


KINDS: Final = tuple(CALLS)
"""Kinds of machine that a filter can be written for."""
