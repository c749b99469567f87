"""The port between a room and the broker.

Decides the contract: publishing never blocks for long, received messages and link changes come out of one inbox in
order, delivery is at least once, and the retain flag of a received message means nothing. `edgeml.mqtt` implements
it over paho, `edgeml.testing` in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """One MQTT message."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = False


@dataclass(frozen=True, slots=True)
class LinkUp:
    """The session with the broker is established and subscribed: say everything retained again."""


@dataclass(frozen=True, slots=True)
class LinkDown:
    """The session with the broker is lost; the transport is already trying again."""

    reason: str


Arrival = Message | LinkUp | LinkDown


class Transport(Protocol):
    """A connection that reconnects by itself."""

    def start(self) -> None:
        """Begin to connect; returns at once."""
        ...

    def publish(self, message: Message) -> bool:
        """Hand a message over; False if the link is down and the message was not taken."""
        ...

    def receive(self, timeout_s: float) -> Arrival | None:
        """Return the next arrival, or None after the timeout."""
        ...

    @property
    def connected(self) -> bool:
        """Whether the link is up now."""
        ...

    @property
    def unconfirmed(self) -> int:
        """Messages handed over and not yet confirmed by the broker."""
        ...

    def close(self) -> None:
        """Disconnect; safe to call twice."""
        ...


def backoff_ceilings(first_s: float, most_s: float) -> Iterator[float]:
    """Yield exponentially growing ceilings; wait a random time below each (full jitter)."""
    ceiling = first_s
    while True:
        yield ceiling
        ceiling = min(ceiling * 2, most_s)
