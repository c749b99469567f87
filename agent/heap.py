"""The C library's heap: what the supervisor does so that it stays as small as it is.

Decides that one arena is enough for threads that allocate little, and when memory goes back is its callers' business.
"""

from __future__ import annotations

import ctypes
import gc
from typing import Final

_ARENA_MAX: Final = -8
"""M_ARENA_MAX of glibc's malloc.h."""


def stay_small() -> None:
    """Keep the C library from holding memory for each thread."""
    ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)
    give_back()


def give_back() -> None:
    """Return what imports, downloads and loading have left behind."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
