"""Tries to break out of the sandbox, from inside, before anything is opened in it.

Decides what must fail: a network, a socket to another program, a file that is written, another process. A kernel that
said yes to a layer and does not keep it is found here.
"""

from __future__ import annotations

import os
import socket
import uuid
import warnings
from collections.abc import Callable
from pathlib import Path

from edgeml.errors import ConfigError

from .seccomp import KINDS


def check_sandbox(folder: Path) -> None:
    """Try what a confined process must not be able to do.

    Args:
        folder: one that this user may write to, as far as its permissions go.

    Raises:
        ConfigError: Something succeeded that must not.
    """
    leaks = [what for what, attempt in _attempts(folder) if attempt()]
    if leaks:
        raise ConfigError(
            f"this machine does not confine a process: it can still {', '.join(leaks)}",
            hint=f"open such files on Linux ({' or '.join(KINDS)}) with seccomp, or write file.py:factory that loads it, if you trust it",
        )


def _attempts(folder: Path) -> tuple[tuple[str, Callable[[], bool]], ...]:
    return (
        ("reach a network", lambda: _socket(socket.AF_INET) or _socket(socket.AF_INET6)),
        ("reach other programs", lambda: _socket(socket.AF_UNIX)),
        ("write files", lambda: _write(folder)),
        ("start programs", _execute),
        ("start processes", _fork),
    )


def _socket(family: socket.AddressFamily) -> bool:
    try:
        socket.socket(family, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def _write(folder: Path) -> bool:
    path = folder / f"breakout-{uuid.uuid4().hex}"
    try:
        path.mkdir()
    except OSError:
        try:
            path.touch()
        except OSError:
            return False
    return True


def _execute() -> bool:
    try:
        # There is no such file, so nothing is ever started: refused is told from not found.
        os.execv("/nonexistent/program", ["program"])  # noqa: S606  # no shell is what is tried
    except PermissionError:
        return False
    except OSError:
        return True


def _fork() -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
    except OSError:
        return False
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return True
