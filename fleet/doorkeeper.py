"""Stands at the controller's door: who has sent too much is turned away before it takes a place in the queue.

Decides nothing about how much is too much (`quota` does); remembers what each device has sent, and counts what was turned
away. Called in the transport's thread for every message, so it looks at the topic only, which the broker has checked: a
device can publish to its own topics and no others. Turning a message away costs neither room nor a transaction.
"""

from __future__ import annotations

import threading

import msgspec

from edgeml import topics
from edgeml.clock import Clock
from edgeml.topics import Leaf

from .config import QuotaSettings
from .quota import Kind, Sent, run_off, weigh

_KINDS = {
    Leaf.STATE: Kind.TALK,
    Leaf.BIRTH: Kind.TALK,
    Leaf.REPORTED: Kind.TALK,
    Leaf.TELEMETRY: Kind.TELEMETRY,
    Leaf.PULL: Kind.PULL,
}


class TurnedAway(msgspec.Struct, frozen=True):
    """What was not taken in of one device."""

    messages: int = 0
    payload_bytes: int = 0


class Doorkeeper:
    """Knows what every device has sent lately. Safe to use from several threads."""

    def __init__(self, quota: QuotaSettings, clock: Clock) -> None:
        self._quota = quota
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: dict[str, Sent] = {}
        self._turned_away: dict[str, TurnedAway] = {}

    @property
    def watched(self) -> int:
        """Devices that are remembered: those that are not at rest, since the last `take`."""
        with self._lock:
            return len(self._sent)

    def admits(self, topic: str, payload_bytes: int) -> bool:
        """Tell whether a message may come in, and remember it."""
        device = _sender(topic)
        kind = _kind(topic)
        if device is None or kind is None:
            return True
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._sent[device], taken = weigh(self._sent.get(device), kind, payload_bytes, self._quota, now_s)
            if not taken:
                before = self._turned_away.get(device, TurnedAway())
                self._turned_away[device] = TurnedAway(
                    before.messages + 1, before.payload_bytes + payload_bytes
                )
        return taken

    def take(self) -> dict[str, TurnedAway]:
        """Hand over what was turned away since the last time, by the device's name; forget who is at rest."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            taken, self._turned_away = self._turned_away, {}
            sent = {name: run_off(one, self._quota, now_s) for name, one in self._sent.items()}
            self._sent = {name: one for name, one in sent.items() if not one.at_rest}
        return taken


def _sender(topic: str) -> str | None:
    """Whose topic it is, also if nothing else in it makes sense."""
    parts = topic.split("/", 5)
    return parts[4] if len(parts) > 4 and parts[3] == "d" else None


def _kind(topic: str) -> Kind | None:
    """What it counts as; None if it is counted elsewhere."""
    address = topics.parse(topic)
    if address is None:
        return Kind.TALK
    return _KINDS.get(address.leaf)
