"""Ties the processes of `serve` to it, so that none outlives it.

Decides both halves: the kernel sends SIGTERM to a child whose parent dies (`edgeml.lifeline`), and a child that cannot
be reached that way looks by itself now and then. Which processes there are is `serve`'s business.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from edgeml.lifeline import die_with_parent


def tied_to_parent() -> Callable[[], None]:
    """Return what a child must call between fork and exec.

    Call this in the parent. The child also ignores SIGINT: Ctrl-C reaches the whole group, but only the parent decides
    in which order things stop.
    """
    parent = os.getpid()

    def prepare() -> None:
        die_with_parent(parent, signal.SIGTERM)
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
