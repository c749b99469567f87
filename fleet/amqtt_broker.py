"""Runs amqtt as a broker for trying out, in its own process, on loopback.

Decides what amqtt 0.12.1 must be kept from doing. It would deliver every retained message that anybody subscribed to
to whoever connects, publish a last will anywhere, keep dead connections for ever, take packets of any size, and drop a
message while somebody subscribes. Each is prevented here, partly by overriding private names: hence the exact pin in
pyproject.toml, and tests/broker/test_amqtt_overrides.py, which fails when an override is not needed or not working.
Who may do what is decided in `edgeml.topics`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import signal
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import click
from amqtt.adapters import ReaderAdapter, StreamReaderAdapter, WriterAdapter
from amqtt.broker import Broker
from amqtt.contexts import Action, BaseContext, ListenerConfig
from amqtt.errors import AMQTTError
from amqtt.mqtt.protocol.broker_handler import BrokerProtocolHandler
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from edgeml import topics
from edgeml.errors import EdgemlError
from edgeml.ids import TenantId

from . import tls_files
from .broker import tokens_path
from .config import FleetConfig, FleetHome, find_home, load
from .lifeline import Lifeline
from .mosquitto import PACKET_BYTES_MAX
from .peer import read_peer

logger = logging.getLogger(__name__)

KEEPALIVE_GRACE_S: Final = 15
"""Added to a client's own keepalive. The specification allows half of it again; amqtt can only add a constant."""
LIFELINE_EVERY_S: Final = 1.0
CERTIFIED: Final = "edgeml_certified"
"""Attribute of a session whose user is known by a certificate."""


class TokenLogin(BaseAuthPlugin):  # type: ignore[misc]  # amqtt is untyped
    """Logs in who knows the token; read again whenever the file changes."""

    @dataclass
    class Config:
        """Settings of the plugin."""

        tokens: str
        tenant: str

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._path = Path(context.config.tokens)
        self._tenant = TenantId(context.config.tenant)
        self._read_at_ns = -1
        self._tokens: Mapping[str, str] = {}

    async def authenticate(self, *, session: Session) -> bool:
        """Compare the token in constant time; refuse a last will on another's topic, and inherited sessions."""
        self._refresh()
        user = session.username or ""
        if getattr(session, CERTIFIED, False):
            return user in self._tokens and _is_fair(self._tenant, session)
        given = hashlib.sha256((session.password or "").encode()).hexdigest()
        known = hmac.compare_digest(self._tokens.get(user, "-"), given)
        return known and _is_fair(self._tenant, session)

    def _refresh(self) -> None:
        changed_at_ns = self._path.stat().st_mtime_ns
        if changed_at_ns != self._read_at_ns:
            pairs = (line.partition(":") for line in self._path.read_text().splitlines())
            self._tokens = {user: sha256 for user, _, sha256 in pairs}
            self._read_at_ns = changed_at_ns


def _is_fair(tenant: TenantId, session: Session) -> bool:
    """Refuse a last will on another's topic, and inherited sessions.

    amqtt publishes a will without asking the topic plugins, and gives a session that is kept to whoever names it.
    """
    will = not session.will_flag or topics.may_publish(
        tenant, session.username or "", session.will_topic or ""
    )
    return will and session.clean_session is True and session.parent == 0


class TopicTable(BaseTopicPlugin):  # type: ignore[misc]  # amqtt is untyped
    """Allows what the topic table allows."""

    @dataclass
    class Config:
        """Settings of the plugin."""

        tenant: str

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """Ask the topic table."""
        return allowed(TenantId(self.context.config.tenant), session, topic, action)


def allowed(tenant: TenantId, session: Session | None, topic: str | None, action: Action | None) -> bool:
    """Tell whether a session may do this with a topic."""
    if session is None or not session.username or not topic:
        return False
    match action:
        case Action.PUBLISH:
            return topics.may_publish(tenant, session.username, topic)
        case Action.SUBSCRIBE:
            return topics.may_subscribe(tenant, session.username, topic)
        case Action.RECEIVE:
            return topics.may_receive(tenant, session.username, topic)
        case _:
            return False


class PacketTooLongError(AMQTTError):  # type: ignore[misc]  # amqtt is untyped
    """A packet longer than any of ours."""


class BoundedReader(StreamReaderAdapter):  # type: ignore[misc]  # amqtt is untyped
    """Refuses to read what no packet of ours needs."""

    async def read(self, n: int = -1) -> bytes:
        """Read n bytes."""
        if n > PACKET_BYTES_MAX:
            raise PacketTooLongError(f"a packet of {n} bytes, more than {PACKET_BYTES_MAX}")
        data: bytes = await super().read(n)
        return data


class TriedOutBroker(Broker):  # type: ignore[misc]  # amqtt is untyped
    """amqtt without the surprises."""

    def __init__(self, config: dict[str, Any], tenant: TenantId) -> None:
        super().__init__(config)
        self._tenant = tenant

    async def _client_connected(
        self, listener_name: str, reader: ReaderAdapter, writer: WriterAdapter
    ) -> None:
        try:
            await super()._client_connected(listener_name, BoundedReader(reader._reader), writer)  # noqa: SLF001  # no accessor
        except ConnectionError as error:
            # A peer that hangs up while it is told goodbye; amqtt would show a stack for it.
            logger.info("a connection was cut: %s", error)
        except asyncio.CancelledError:
            # The broker stops. This is all that the task does, and asyncio's streams (until Python 3.12) show a stack
            # for a handler that was cancelled.
            logger.info("a connection was ended by the broker's end")

    @staticmethod
    def _create_ssl_context(listener: ListenerConfig) -> ssl.SSLContext:
        # amqtt would take clients without a certificate, and knows no revocations.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(listener["certfile"])
        context.load_verify_locations(listener["cafile"])
        context.load_verify_locations(Path(listener["cafile"]).with_name(tls_files.REVOCATIONS))
        context.verify_flags |= ssl.VerifyFlags.VERIFY_CRL_CHECK_LEAF
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    async def _initialize_client_session(
        self, reader: ReaderAdapter, writer: WriterAdapter, remote_address: str, remote_port: int
    ) -> tuple[BrokerProtocolHandler, Session]:
        handler, session = await super()._initialize_client_session(
            reader, writer, remote_address, remote_port
        )
        tls = writer.get_ssl_info()
        if tls is not None:
            # The TLS layer has verified it; what the client calls itself counts for nothing.
            peer = read_peer(tls.getpeercert())
            session.username, session.password = (peer.device if peer else None), None
            setattr(session, CERTIFIED, peer is not None)
        # amqtt measures the keepalive and then does nothing.
        handler.handle_read_timeout = lambda: asyncio.ensure_future(handler.handle_connection_closed())
        return handler, session

    async def _publish_retained_messages_for_subscription(
        self, subscription: tuple[str, int], session: Session
    ) -> None:
        # amqtt calls this at every connect with the filters of everybody.
        holders = self._subscriptions.get(subscription[0], ())
        if any(holder.client_id == session.client_id for holder, _ in holders):
            await super()._publish_retained_messages_for_subscription(subscription, session)

    async def _topic_filtering(self, session: Session, topic: str, action: Action) -> bool:
        # amqtt asks its plugins in tasks while it walks over all subscriptions; if one is added meanwhile the walk
        # fails and the message is lost. This answer needs no task. The plugin stays, should this override stop working.
        return allowed(self._tenant, session, topic, action)


def settings(config: FleetConfig, home: FleetHome) -> dict[str, Any]:
    """Settings of a broker: a plain listener, and one with TLS if there is to be one."""
    tokens, tenant, tls = tokens_path(home), TenantId(config.tenant), config.tls
    host, port = config.broker.host, config.broker.port
    listeners: dict[str, Any] = {"default": {"type": "tcp", "bind": f"{host}:{port}", "max_connections": 0}}
    if tls.broker_port:
        server = str(tls_files.server_path(home))
        listeners["tls"] = {
            "type": "tcp",
            "bind": f"{tls.host}:{tls.broker_port}",
            "max_connections": 0,
            "ssl": True,
            "cafile": str(tls_files.authority_path(home)),
            "certfile": server,
            "keyfile": server,
        }
    return {
        "listeners": listeners,
        "timeout_disconnect_delay": KEEPALIVE_GRACE_S,
        "plugins": {
            f"{__package__}.amqtt_broker.TokenLogin": {
                "tokens": str(tokens),
                "tenant": tenant,
            },
            f"{__package__}.amqtt_broker.TopicTable": {"tenant": tenant},
        },
    }


async def run(config: dict[str, Any], tenant: TenantId) -> None:
    """Run a broker until SIGTERM, or until the parent dies."""
    lifeline = Lifeline()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    broker = TriedOutBroker(config, tenant)
    await broker.start()
    while not stop.is_set() and not lifeline.cut:
        try:
            await asyncio.wait_for(stop.wait(), LIFELINE_EVERY_S)
        except TimeoutError:
            continue
    await broker.shutdown()


@click.command()
@click.option("--dir", "directory", required=True)
def main(directory: str) -> None:
    """Run the broker of a fleet's directory; `edgeml fleet serve` starts it."""
    logging.basicConfig(level=logging.WARNING, format="broker: %(message)s")
    home = find_home(directory)
    try:
        config = load(home)
        asyncio.run(run(settings(config, home), TenantId(config.tenant)))
    except EdgemlError as error:
        # One line for people; the trace would say nothing that they can use.
        click.echo(f"error: {error.message}", err=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
