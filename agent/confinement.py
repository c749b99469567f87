"""Confinement: what a worker is held to before it loads anything.

Decides how: by a control group where the agent was given one, else by affinity, so that a worker can take no more
processors than the budget has; and in both cases that whatever else the device does goes first. How much it may have is
`admission`'s business. What cannot be set is said once and left to the watchdog.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from typing import Final

from edgeml.ids import ModelName

from .cgroup import Groups

logger = logging.getLogger(__name__)

NICE: Final = 5
"""Of workers: the device's own work, and the agent, go first."""


class Confinement:
    """Holds workers to their budget. Thread-safe as far as `place` is called for different workers."""

    def __init__(self, cpu_cores: float | None, groups: Groups | None) -> None:
        self._cpus = None if groups is not None else chosen_cpus(cpu_cores, os.sched_getaffinity(0))
        self._groups = groups
        self._complained = False

    @property
    def enforced(self) -> bool:
        """Whether the kernel keeps workers within the budget."""
        return self._groups is not None

    def place(self, pid: int, model: ModelName, memory_bytes: int | None) -> None:
        """Confine a worker that was just forked; `memory_bytes` is the most it may take."""
        if self._groups is not None:
            groups = self._groups
            self._try(lambda: groups.place(pid, model, memory_bytes), "into a control group")
        if self._cpus is not None:
            cpus = self._cpus
            self._try(lambda: os.sched_setaffinity(pid, cpus), f"on {len(cpus)} processors")
        self._try(lambda: _put_behind(pid), "behind other work")

    def resize(self, pid: int, model: ModelName, memory_bytes: int | None) -> None:
        """Set anew how much memory a worker may take; one that is gone or has no group is left alone."""
        if self._groups is not None:
            groups = self._groups
            self._try(lambda: groups.resize(pid, model, memory_bytes), "into a control group")

    def _try(self, act: Callable[[], None], what: str) -> None:
        try:
            act()
        except (ProcessLookupError, FileNotFoundError):
            logger.debug("a worker was gone before it could be put %s", what)
        except OSError as error:
            if not self._complained:
                logger.warning("workers cannot be put %s (%s); they are only watched", what, error.strerror)
            self._complained = True


def _put_behind(pid: int) -> None:
    # An agent that gives way itself has workers that do so no less.
    nice = max(os.getpriority(os.PRIO_PROCESS, pid), NICE)
    os.setpriority(os.PRIO_PROCESS, pid, nice)


def chosen_cpus(cpu_cores: float | None, allowed: set[int]) -> frozenset[int] | None:
    """Choose the processors of workers: the last ones, for the first serves the device's interrupts; None is all.

    >>> sorted(chosen_cpus(1.5, {0, 1, 2, 3}))
    [2, 3]
    >>> chosen_cpus(4, {0, 1}) is None
    True
    """
    if cpu_cores is None or math.ceil(cpu_cores) >= len(allowed):
        return None
    return frozenset(sorted(allowed)[-max(math.ceil(cpu_cores), 1) :])
