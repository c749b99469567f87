"""Which device's pull is answered next, and when.

Decides fairness (one piece a device, in turns), the rates of each device and of all, how many requests may wait, and
that a request which waits is not queued twice. Pure: requests and `now_s` in, requests out; `now_s` never goes back.
What a request may name is decided in `edgeml.pull`, what is there in `pulling`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from edgeml.ids import ChannelId, DeviceId
from edgeml.pull import Request

DEVICES_MAX: Final = 1024
"""Devices that may wait at a time."""
REQUESTS_MAX: Final = 32
"""Requests of one device that may wait: four processes that fetch at once."""
PATIENCE_S: Final = 60.0
"""Whoever waited so long has asked again, or is gone."""
BURST_S: Final = 1.0
"""What a rate may save up."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Bytes a second, all above 0."""

    all_bytes_per_s: float
    device_bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Pull:
    """A request that waits."""

    device: DeviceId
    request: Request
    asked_s: float


class _Bucket:
    """May be overdrawn by one piece: a rate below a piece a second works, too."""

    def __init__(self, bytes_per_s: float, now_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._level_bytes = bytes_per_s * BURST_S
        self._at_s = now_s

    def wait_s(self, now_s: float) -> float:
        """How long until something may be taken."""
        self._level_bytes += (now_s - self._at_s) * self._bytes_per_s
        self._level_bytes = min(self._level_bytes, self._bytes_per_s * BURST_S)
        self._at_s = now_s
        return max(0.0, -self._level_bytes / self._bytes_per_s)

    def take(self, count: int) -> None:
        """Take, or give back what is negative."""
        self._level_bytes -= count

    @property
    def is_full(self) -> bool:
        """Whether it says nothing that a new one would not."""
        return self._level_bytes >= self._bytes_per_s * BURST_S


_Key = tuple[ChannelId, int]


class Pulls:
    """Requests that wait to be answered."""

    def __init__(self, rates: Rates, now_s: float) -> None:
        self._rates = rates
        self._all = _Bucket(rates.all_bytes_per_s, now_s)
        self._buckets: dict[DeviceId, _Bucket] = {}
        self._waiting: OrderedDict[DeviceId, OrderedDict[_Key, Pull]] = OrderedDict()
        """Whose turn it is comes first."""

    @property
    def count(self) -> int:
        """Requests that wait."""
        return sum(len(queue) for queue in self._waiting.values())

    def ask(self, device: DeviceId, request: Request, now_s: float) -> str:
        """Queue a request; return why it is not, or nothing. One that waits already is only renewed."""
        queue = self._waiting.get(device)
        key = (request.channel, request.id)
        if queue is None:
            if len(self._waiting) >= DEVICES_MAX:
                return f"{DEVICES_MAX} devices wait already"
            queue = self._waiting[device] = OrderedDict()
        elif key not in queue and len(queue) >= REQUESTS_MAX:
            return f"{REQUESTS_MAX} of its requests wait already"
        queue[key] = Pull(device, request, now_s)
        return ""

    def take(self, now_s: float) -> Pull | None:
        """Return what to answer now; its length counts against the rates at once."""
        self._expire(now_s)
        if not self._waiting or self._all.wait_s(now_s) > 0:
            return None
        for device, queue in self._waiting.items():
            bucket = self._bucket(device, now_s)
            if bucket.wait_s(now_s) > 0:
                continue
            _, pull = queue.popitem(last=False)
            self._waiting.move_to_end(device)
            if not queue:
                del self._waiting[device]
            bucket.take(pull.request.length)
            self._all.take(pull.request.length)
            return pull
        return None

    def settle(self, pull: Pull, sent_bytes: int, now_s: float) -> None:
        """Give back what a request that was taken did not need."""
        unused = pull.request.length - sent_bytes
        self._bucket(pull.device, now_s).take(-unused)
        self._all.take(-unused)

    def wait_s(self, now_s: float) -> float | None:
        """How long until something may be answered; None if nothing waits."""
        if not self._waiting:
            return None
        devices_s = min(self._bucket(one, now_s).wait_s(now_s) for one in self._waiting)
        return max(devices_s, self._all.wait_s(now_s))

    def clear(self) -> None:
        """Forget what waits: the link was lost, and devices ask again. Rates go on."""
        self._waiting.clear()

    def _bucket(self, device: DeviceId, now_s: float) -> _Bucket:
        bucket = self._buckets.get(device)
        if bucket is None:
            if len(self._buckets) >= 2 * DEVICES_MAX:
                self._forget(now_s)
            bucket = self._buckets[device] = _Bucket(self._rates.device_bytes_per_s, now_s)
        return bucket

    def _forget(self, now_s: float) -> None:
        for device, bucket in list(self._buckets.items()):
            bucket.wait_s(now_s)
            if bucket.is_full and device not in self._waiting:
                del self._buckets[device]

    def _expire(self, now_s: float) -> None:
        for device, queue in list(self._waiting.items()):
            while queue:
                key, pull = next(iter(queue.items()))
                if now_s - pull.asked_s <= PATIENCE_S:
                    break
                del queue[key]
            if not queue:
                del self._waiting[device]
