"""The transport of a device whose network may have a budget.

Decides nothing: it lets the kernel's count of the link into the account, asks `ration` whether the link may stay and
whether a new one may be made, and carries that out. A link that is given up says that the device goes away, and is made
anew from nothing the next day. Without a budget it counts, and no more.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from edgeml.clock import Clock
from edgeml.errors import ConfigError, StorageError
from edgeml.mqtt import Login, PahoTransport
from edgeml.transport import Arrival, LinkDown, Message
from edgeml.wire import WireMeter

from .config import AgentConfig, read_token
from .link import Link
from .ration import CONNECTION_BYTES, dial_wait_s, is_used_up, keepalive_s
from .traffic import Traffic
from .updater import Moment

logger = logging.getLogger(__name__)

FAREWELL_S: Final = 1.0
"""For last words to be confirmed."""
REDIAL_S: Final = 5.0
"""Between two links that are made from nothing."""


class MeteredLink:
    """A connection that reconnects by itself as often as the budget allows. For one thread.

    Raises:
        StorageError: What was used cannot be written down, in `receive`.
    """

    def __init__(
        self,
        dial: Callable[[WireMeter], PahoTransport],
        traffic: Traffic,
        clock: Clock,
        farewell: Callable[[], Message],
    ) -> None:
        """Compose a link.

        Args:
            dial: makes a transport that has not started and is counted by this meter.
            traffic: the day's account.
            clock: the agent's.
            farewell: makes the message that says that the device goes away.
        """
        self._make = dial
        self._traffic = traffic
        self._clock = clock
        self._farewell = farewell
        self._meter = WireMeter()
        self._counted_bytes = 0
        # Made at once: settings that are wrong are to be known before anything runs.
        self._inner: PahoTransport | None = dial(self._meter)
        self._is_started = False
        self._dialled_s = float("-inf")
        self._cost_bytes = CONNECTION_BYTES
        self._before_bytes = 0
        self._arrivals: deque[Arrival] = deque()
        self.given_up = 0
        """How often the budget ended the link."""

    @property
    def connected(self) -> bool:
        """Whether the link is up now."""
        return self._inner is not None and self._inner.connected

    @property
    def unconfirmed(self) -> int:
        """Messages handed over and not yet confirmed by the broker."""
        return 0 if self._inner is None else self._inner.unconfirmed

    def start(self) -> None:
        """Begin to connect, now or when the budget allows it."""
        self._is_started = True
        inner, self._inner = self._inner, None
        self._dial(inner)

    def publish(self, message: Message) -> bool:
        """Hand a message over; False if the link is down and the message was not taken."""
        return self._inner is not None and self._inner.publish(message)

    def receive(self, timeout_s: float) -> Arrival | None:
        """Return the next arrival, or None after the timeout."""
        self._settle()
        self._keep_to_the_budget()
        if self._arrivals:
            return self._arrivals.popleft()
        if self._inner is None:
            time.sleep(timeout_s)
            return None
        arrival = self._inner.receive(timeout_s)
        if isinstance(arrival, LinkDown):
            self._settle()
            self._on_down()
        return arrival

    def reload_identity(self) -> None:
        """Connect again with the key and certificate that are on disk now.

        Raises:
            ConfigError: They cannot be used; the link stays as it is.
        """
        if self._inner is not None:
            self._inner.reload_identity()

    def close(self) -> None:
        """Disconnect, and write down what was used; safe to call twice."""
        self._is_started = False
        self._drop()
        try:
            self._settle()
            self._traffic.settle()
        except StorageError as error:
            logger.warning("what was used of the network cannot be written down: %s", error.message)

    def _settle(self) -> None:
        total = self._meter.look()
        count, self._counted_bytes = total - self._counted_bytes, total
        self._traffic.redeem(count, outstanding=self.unconfirmed > 0)

    def _on_down(self) -> None:
        """Note what the attempt that has failed cost, or the link that broke; the next one may have to wait."""
        self._dialled_s = self._clock.monotonic_s()
        self._cost_bytes, self._before_bytes = self._counted_bytes - self._before_bytes, self._counted_bytes
        day = self._traffic.day
        if day is not None and dial_wait_s(day, 0.0, self._cost_bytes) > 0:
            self._drop()

    def _keep_to_the_budget(self) -> None:
        day = self._traffic.day
        if self._inner is None:
            self._dial(None)
        elif day is not None and is_used_up(day) and self._is_started:
            logger.warning(
                "the network's budget of today is used up after %d bytes; the link is given up for %.0f minutes",
                day.used_bytes,
                day.left_s / 60,
            )
            self._say_farewell(self._inner)
            self._drop()
            self.given_up += 1
            self._arrivals.append(LinkDown("the network's budget of today is used up"))

    def _dial(self, made: PahoTransport | None) -> None:
        now_s, day = self._clock.monotonic_s(), self._traffic.day
        since_s = now_s - self._dialled_s
        if not self._is_started or (day is not None and dial_wait_s(day, since_s, self._cost_bytes) > 0):
            return
        if made is None and now_s - self._dialled_s < REDIAL_S:
            return
        self._dialled_s = now_s
        try:
            self._inner = made or self._make(self._meter)
        except ConfigError as error:
            logger.error("the link cannot be made: %s (%s)", error.message, error.hint)  # noqa: TRY400 - one line
            return
        self._inner.start()

    def _say_farewell(self, inner: PahoTransport) -> None:
        if not inner.connected or not inner.publish(self._farewell()):
            return
        until_s = time.monotonic() + FAREWELL_S
        while inner.unconfirmed and time.monotonic() < until_s:
            time.sleep(0.02)

    def _drop(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.close()


def connect(config: AgentConfig, link: Link, traffic: Traffic, clock: Clock) -> MeteredLink | None:
    """Make the link of these settings; None if they have no broker.

    Raises:
        ConfigError: The token or the certificates cannot be used.
    """
    broker = config.broker
    if broker is None:
        return None
    login = Login(
        host=broker.host,
        port=broker.port,
        username=config.device,
        password=read_token(config),
        client_id=config.device,
        tls=config.tls.files if config.tls else None,
        keepalive_s=keepalive_s(config.budget.network_bytes_per_day),
    )

    def dial(meter: WireMeter) -> PahoTransport:
        return PahoTransport(
            login,
            subscriptions=link.subscriptions,
            will=link.will,
            meter=meter,
        )

    return MeteredLink(
        dial, traffic, clock, lambda: link.farewell(Moment(clock.now_ms(), clock.monotonic_s()))
    )
