"""Which way a fetch takes to the fleet: HTTP, the broker, or the broker where HTTP cannot be reached.

Decides what the child is told of the fleet, and puts the sources together. What each of them does is decided in
`edgeml.source`, `edgeml.mqtt_source` and `edgeml.fallback_source`. A cache nearby is asked before any of them, which is
the child's business.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from edgeml.errors import ConfigError
from edgeml.ids import DeviceId, TenantId

from .config import HTTP, AgentConfig, Over, TlsConfig, read_token

if TYPE_CHECKING:
    # The agent imports this file for its types, and has no HTTP client.
    from edgeml.meter import Meter
    from edgeml.mqtt_source import MqttSource
    from edgeml.source import Source


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """How the fleet is reached, and as whom."""

    over: Over = Over.HTTP
    url: str = ""
    broker_host: str = ""
    broker_port: int = 0
    tenant: str = ""
    device: str = ""
    password: str = ""
    """Empty: the certificate says who it is."""
    tls: TlsConfig | None = None

    def __repr__(self) -> str:
        """Leave the password out: this may reach a log."""
        return f"Route({self.device} over {self.over.value})"

    def open(self, stack: ExitStack, meter: Meter) -> Source:
        """Put a source together; the stack closes it. Nothing is connected before it is asked.

        Args:
            stack: what closes the source.
            meter: what the broker's way takes of the network besides the files themselves.

        Raises:
            ConfigError: Key or certificate cannot be used.
        """
        from edgeml.fallback_source import FallbackSource
        from edgeml.source import HttpSource

        if self.over is Over.MQTT:
            return self._mqtt(stack, meter)
        http = HttpSource(
            self.url, self.device, self.password, self.tls.files if self.tls else None, meter.wire
        )
        return http if self.over is Over.HTTP else FallbackSource(http, self._mqtt(stack, meter))

    def _mqtt(self, stack: ExitStack, meter: Meter) -> MqttSource:
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
            tls=self.tls.files if self.tls else None,
        )
        transport = PahoTransport(
            login, subscriptions=(mailbox.filter,), inbox_max=INBOX_MAX, meter=meter.wire
        )
        source = MqttSource(transport, mailbox, meter)
        stack.callback(source.close)
        return source


def way_to_fleet(config: AgentConfig) -> str | Route:
    """Say where the fleet's repository is, and how it is reached: a way, or a directory.

    Raises:
        ConfigError: There is no server, or no login.
    """
    blobs, broker = config.blobs, config.broker
    if blobs is None or broker is None:
        raise ConfigError(
            "this device has no server to fetch from", hint="set [blobs] and [broker], or flash it"
        )
    if blobs.over is Over.HTTP and not blobs.url.startswith(HTTP):
        return blobs.url
    return Route(
        over=blobs.over,
        url=blobs.url,
        broker_host=broker.host,
        broker_port=broker.port,
        tenant=config.tenant,
        device=config.device,
        password=read_token(config),
        tls=config.tls,
    )
