"""Ties a process to its parent, so that none outlives the program that started it.

Decides how: Linux sends a signal to a child whose parent (the thread that forked it) is gone, and a child that asks for
that too late notices by itself. Elsewhere nothing is tied. Which processes there are, and which signal they should get,
is their makers' business.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
# Loaded here, not when it is used: between fork and exec nothing may be loaded.
_libc: Final = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Ask for signal `number` when the parent ends, and end now if `parent` (its process id) has ended already.

    Safe between fork and exec.
    """
    if sys.platform == "linux":
        _libc.prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
