"""What a device says and hears over its link with the fleet.

Decides which messages follow from a link that comes up, from a change in the device and from telemetry that waits; and
what is done with `desired` and `ack`. Pure of sockets and clocks: the shell moves messages between here and a
transport. Everything said is either retained and said again on every new link, or repeated until the controller's own
acknowledgement, so nothing here needs to survive a restart.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgeml import topics, twin
from edgeml.errors import ManifestError
from edgeml.ids import DeviceId, ModelName, TenantId
from edgeml.topics import RULES, Leaf
from edgeml.transport import Arrival, LinkDown, LinkUp, Message
from edgeml.twin import Birth, Presence, Reported

from .device import Device
from .updater import Moment
from .uplink import Uplink

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who speaks. `session` is new with every life of the agent."""

    tenant: TenantId
    device: DeviceId
    session: str


class Link:
    """One device's conversation with the fleet. Not thread-safe."""

    def __init__(
        self, identity: Identity, device: Device, uplink: Uplink, inventory: Callable[[Moment], Birth]
    ) -> None:
        self._identity = identity
        self._device = device
        self._uplink = uplink
        self._inventory = inventory
        self._up = False
        self.outbox: deque[Message] = deque()
        """Messages to hand to the transport, in order; the shell removes what was taken."""

    @property
    def up(self) -> bool:
        """Whether the link is up."""
        return self._up

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """What the device listens to."""
        return topics.down_filters(self._identity.tenant, self._identity.device)

    @property
    def will(self) -> Message:
        """What the broker says for the device if it vanishes."""
        return self._message(Leaf.STATE, twin.encode(Presence(online=False, session=self._identity.session)))

    def hear(self, arrival: Arrival, now: Moment) -> None:
        """Take in a message or a change of the link. Messages that make no sense are logged and dropped."""
        match arrival:
            case LinkUp():
                logger.info("link up")
                self._up = True
                self.outbox.clear()
                self._say(
                    Leaf.STATE, Presence(online=True, session=self._identity.session, at_ms=now.wall_ms)
                )
                self._say(Leaf.BIRTH, self._inventory(now))
                self._report(self._device.reported(now))
                self._uplink.on_link_up(now.monotonic_s)
            case LinkDown(reason):
                if self._up:
                    logger.info("link down: %s", reason)
                self._up = False
                self.outbox.clear()
            case Message(topic, payload):
                self._hear_message(topic, payload, now)

    def introduce(self, now: Moment) -> None:
        """Say again what the device is: something about that has changed."""
        if self._up:
            self._say(Leaf.BIRTH, self._inventory(now))

    def speak(self, now: Moment) -> None:
        """Put what is due into the outbox."""
        reports = self._device.take_reports(now)
        if not self._up:
            return
        self._report(reports)
        self.outbox.extend(self._uplink.due(now.monotonic_s, link_up=True))

    def farewell(self, now: Moment) -> Message:
        """Say that the device goes away on purpose."""
        return self._message(
            Leaf.STATE, twin.encode(Presence(online=False, session=self._identity.session, at_ms=now.wall_ms))
        )

    def _hear_message(self, topic: str, payload: bytes, now: Moment) -> None:
        address = topics.parse(topic)
        if address is None or address.device != self._identity.device:
            logger.warning("a message on %s is not for this device", topic)
            return
        if len(payload) > RULES[address.leaf].bytes_max:
            logger.warning("a message of %d bytes on %s is too long", len(payload), topic)
            return
        try:
            if address.model is not None:
                self._device.on_desired(address.model, payload, now)
            elif address.leaf is Leaf.ACK:
                self._uplink.on_ack(payload, now.monotonic_s)
        except ManifestError as error:
            logger.warning("%s: %s", topic, error.message)

    def _report(self, reports: Mapping[ModelName, Reported]) -> None:
        for model, report in reports.items():
            self.outbox.append(self._message(Leaf.REPORTED, twin.encode(report), model))

    def _say(self, leaf: Leaf, message: twin.Message) -> None:
        self.outbox.append(self._message(leaf, twin.encode(message)))

    def _message(self, leaf: Leaf, payload: bytes, model: ModelName | None = None) -> Message:
        rule = RULES[leaf]
        topic = topics.device_topic(self._identity.tenant, self._identity.device, leaf, model)
        return Message(topic, payload, rule.qos, rule.retain)
