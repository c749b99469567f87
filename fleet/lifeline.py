"""Ties a child process to its parent, so that none outlives the program that started it.

Decides both halves: the kernel sends SIGTERM to a child whose parent dies (Linux), and a child that was forked after
that already happened notices by itself. Which processes there are is `serve`'s business.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_libc = ctypes.CDLL(None, use_errno=True)


def tied_to_parent() -> Callable[[], None]:
    """Return what a child must call between fork and exec.

    Call this in the parent. The child also ignores SIGINT: Ctrl-C reaches the whole group, but only the parent decides
    in which order things stop.
    """
    parent = os.getpid()

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    return prepare


class Lifeline:
    """Tells a child whether its parent still lives. Make it early in the child's life."""

    def __init__(self) -> None:
        self._parent = os.getppid()

    @property
    def cut(self) -> bool:
        """Whether the parent is gone."""
        return os.getppid() != self._parent
