"""Usage: how much memory and processor time each worker takes now.

Decides how both are measured cheaply: resident memory costs microseconds, telling a worker's own part from what it
shares costs some hundred, so that is done when resident memory has moved. What follows from a reading is `governor`'s
business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from edgeml.ids import ModelName

from .admission import own_bytes
from .sensors import Sensors

MOVED_BYTES: Final = 4 << 20
"""Resident memory that has moved so far is looked into again."""
LOOK_EVERY_S: Final = 60.0
SMOOTH_S: Final = 5.0
"""Processor time is averaged over about so long: loading a model for a second is no load."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one worker takes."""

    memory_bytes: int
    """Its own, not what it shares; 0 if the process is gone."""
    cpu_cores: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a process was seen to use."""

    pid: int
    at_s: float
    cpu_s: float
    cores: float
    rss_bytes: int
    """When `own_bytes` was read."""
    own_bytes: int
    own_at_s: float


class UsageMeter:
    """Reads the workers of a device again and again. Not thread-safe."""

    def __init__(self, sensors: Sensors) -> None:
        self._sensors = sensors
        self._seen: dict[ModelName, _Seen] = {}

    def read(
        self, workers: Mapping[ModelName, int], shared_bytes: int, now_s: float
    ) -> dict[ModelName, Reading]:
        """Read every worker.

        Args:
            workers: process ids.
            shared_bytes: what all of them share, for a kernel that does not tell.
            now_s: the monotonic clock.
        """
        for gone in self._seen.keys() - workers.keys():
            del self._seen[gone]
        return {model: self._read(model, pid, shared_bytes, now_s) for model, pid in workers.items()}

    def _read(self, model: ModelName, pid: int, shared_bytes: int, now_s: float) -> Reading:
        rss = self._sensors.rss_bytes(pid)
        cpu = self._sensors.cpu_s(pid)
        if rss is None or cpu is None:
            self._seen.pop(model, None)
            return Reading(0, 0.0)
        seen = self._seen.get(model)
        if seen is None or seen.pid != pid:
            seen = _Seen(pid, now_s, cpu, 0.0, rss, self._own(pid, rss, shared_bytes), now_s)
        elif abs(rss - seen.rss_bytes) > MOVED_BYTES or now_s - seen.own_at_s >= LOOK_EVERY_S:
            own = self._own(pid, rss, shared_bytes)
            seen = _Seen(pid, seen.at_s, seen.cpu_s, seen.cores, rss, own, now_s)
        elapsed_s = now_s - seen.at_s
        if elapsed_s > 0:
            weight = 1 - math.exp(-elapsed_s / SMOOTH_S)
            cores = seen.cores + weight * ((cpu - seen.cpu_s) / elapsed_s - seen.cores)
            seen = _Seen(pid, now_s, cpu, cores, seen.rss_bytes, seen.own_bytes, seen.own_at_s)
        self._seen[model] = seen
        # What it took or gave back since is its own: what is shared was there when it was forked.
        return Reading(max(seen.own_bytes + rss - seen.rss_bytes, 0), seen.cores)

    def _own(self, pid: int, rss_bytes: int, shared_bytes: int) -> int:
        memory = self._sensors.memory(pid)
        return own_bytes(rss_bytes, shared_bytes) if memory is None else memory.uss_bytes
