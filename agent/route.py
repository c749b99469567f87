"""Which way a fetch takes to the fleet: HTTP, the broker, or the broker where HTTP cannot be reached.

Decides what the child is told of the broker, and puts the sources together. What each of them does is decided in
`edgeml.source`, `edgeml.mqtt_source` and `edgeml.fallback_source`.
"""

from __future__ import annotations

import enum
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from edgeml.ids import DeviceId, TenantId

if TYPE_CHECKING:
    # The agent imports this file for its types, and has no HTTP client.
    from edgeml.mqtt_source import MqttSource
    from edgeml.source import Source


class Over(enum.Enum):
    """Ways."""

    HTTP = "http"
    MQTT = "mqtt"
    HTTP_THEN_MQTT = "http-then-mqtt"


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """How the fleet is reached, and as whom."""

    over: Over = Over.HTTP
    url: str = ""
    broker_host: str = ""
    broker_port: int = 0
    tenant: str = ""
    device: str = ""
    password: str = ""

    def __repr__(self) -> str:
        """Leave the password out: this may reach a log."""
        return f"Route({self.device} over {self.over.value})"

    def open(self, stack: ExitStack) -> Source:
        """Put a source together; the stack closes it. Nothing is connected before it is asked."""
        from edgeml.fallback_source import FallbackSource
        from edgeml.source import HttpSource

        if self.over is Over.MQTT:
            return self._mqtt(stack)
        http = HttpSource(self.url, self.device, self.password)
        return http if self.over is Over.HTTP else FallbackSource(http, self._mqtt(stack))

    def _mqtt(self, stack: ExitStack) -> MqttSource:
        from edgeml.mqtt import Login, PahoTransport
        from edgeml.mqtt_source import INBOX_MAX, MqttSource, new_mailbox

        mailbox = new_mailbox(TenantId(self.tenant), DeviceId(self.device))
        login = Login(
            host=self.broker_host,
            port=self.broker_port,
            username=self.device,
            password=self.password,
            # Not the agent's, which would be hung up on; and not that of another fetch.
            client_id=f"{self.device}-pull-{mailbox.channel}",
        )
        transport = PahoTransport(login, subscriptions=(mailbox.filter,), inbox_max=INBOX_MAX)
        source = MqttSource(transport, mailbox)
        stack.callback(source.close)
        return source
