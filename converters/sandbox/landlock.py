"""Landlock: a process that may read named folders, write to one file, and do nothing else with files.

Decides how a ruleset is made of paths. Which paths they are is the caller's business.
Source: landlock(7); Documentation/userspace-api/landlock.rst of Linux. The three calls have one number on all machines.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_ASK_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_WRITE_FILE, _READ_FILE, _READ_FOLDER = 1 << 1, 1 << 2, 1 << 3
_RIGHTS_BITS: Final = {1: 13, 2: 14, 3: 15, 4: 15}
"""Rights over files by version; later ones have 16."""
_NETWORK_FROM, _SCOPES_FROM = 4, 6
_NETWORK_RIGHTS, _SCOPES = 3, 3
"""Bind and connect by TCP; abstract sockets and signals beyond the process' own domain."""


def restrict_files(libc: ctypes.CDLL, readable: Iterable[Path], writable: Path) -> bool:
    """Leave this process nothing but reading `readable` and what is beneath, and writing to the one file `writable`.

    False if the system has no Landlock.

    Files that are open already stay usable. `no_new_privs` must be set.
    """
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), _ASK_VERSION)
    if version < 1:
        return False
    attributes = struct.pack(
        "=QQQ",
        (1 << _RIGHTS_BITS.get(version, 16)) - 1,
        _NETWORK_RIGHTS if version >= _NETWORK_FROM else 0,
        _SCOPES if version >= _SCOPES_FROM else 0,
    )
    length_bytes = 24 if version >= _SCOPES_FROM else 16 if version >= _NETWORK_FROM else 8
    rules = libc.syscall(_CREATE, attributes, ctypes.c_size_t(length_bytes), 0)
    if rules < 0:
        return False
    try:
        for path in readable:
            # Missing ones are not allowed, which is what a rule about them would have to say anyway.
            with suppress(OSError):
                _allow(libc, rules, path, _READ_FILE | _READ_FOLDER if path.is_dir() else _READ_FILE)
        _allow(libc, rules, writable, _READ_FILE | _WRITE_FILE)
        return bool(libc.syscall(_RESTRICT, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> None:
    handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        libc.syscall(_ADD, rules, _PATH_BENEATH, struct.pack("=Qi", rights, handle), 0)
    finally:
        os.close(handle)
