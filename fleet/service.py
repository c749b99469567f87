"""The controller: hears the fleet, stores what it says, decides, and says what is wanted.

The composition root of a running fleet. It decides nothing itself: messages are checked by `ingest`, taken in by
`hearing`, rollouts moved by `advance`. Here is only the order: store first, then acknowledge; decide and store, then
publish. All state is in the database, every time is absolute, so it may die at any instant and be started again.
One thread, driven by `step`; the transport brings messages and takes them away.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Final, Protocol

import msgspec
import sqlalchemy as sa

from edgeml import topics, twin
from edgeml.clock import Clock
from edgeml.errors import ManifestError
from edgeml.ids import ChannelId, DeviceId, ModelName, ReleaseId, TenantId
from edgeml.topics import RULES, Leaf
from edgeml.transport import Arrival, LinkDown, LinkUp, Message, Transport
from edgeml.trustfacts import SignedTarget

from . import assignments, floods, ingest, removals, rollout_store, schema, telemetry_store
from . import devices as device_store
from .acks import Acks
from .advance import advance
from .config import FleetConfig
from .devices import DesiredRow, Device, TwinKey
from .doorkeeper import Doorkeeper
from .facts import gather
from .hearing import Hearing
from .ingest import Heard, PullHeard
from .pulling import Pulling
from .refusals import Refusals
from .rollout import FINISHED, Decision, Facts, MetricEvidence, Rollout
from .store import Store, upsert
from .telemetry_store import SliceBook

logger = logging.getLogger(__name__)

BATCH_S: Final = 0.1
BATCH_MAX: Final = 500
BATCH_BYTES_MAX: Final = 128 << 10
"""Bounds one transaction: while it lasts, commands wait."""
DECIDING_MAX_FRACTION: Final = 0.2
"""Share of the time that may go into decisions: with a large fleet rollouts are looked at less often."""
HEARTBEAT_S: Final = 10.0
PRUNE_S: Final = 3600.0
GOODBYE_S: Final = 1.0
_DAY_MS: Final = 24 * 3600 * 1000


class Releases(Protocol):
    """Where signed variants are found."""

    directory: Path
    """What devices may fetch."""

    def variant_for(self, release: ReleaseId, profile: str) -> SignedTarget | None:
        """Return the variant of a release that suits a profile."""
        ...


def new_session() -> str:
    """Name one life of a controller."""
    return secrets.token_hex(8)


def presence_message(config: FleetConfig, session: str, at_ms: int, *, online: bool) -> Message:
    """What a controller says of itself; with `online` false also its last will."""
    topic = topics.controller_topic(TenantId(config.tenant), config.controller)
    return Message(
        topic, twin.encode(twin.Presence(online=online, session=session, at_ms=at_ms)), qos=1, retain=True
    )


class Controller:
    """One controller of one tenant."""

    def __init__(
        self,
        store: Store,
        releases: Releases,
        transport: Transport,
        clock: Clock,
        config: FleetConfig,
        *,
        session: str = "",
        doorkeeper: Doorkeeper | None = None,
    ) -> None:
        self._store = store
        self._releases = releases
        self._transport = transport
        self._clock = clock
        self._config = config
        self._tenant = TenantId(config.tenant)
        self._session = session or new_session()
        self._doorkeeper = doorkeeper
        """Whom the transport asks who may come in; None: nobody is turned away."""
        self._started_at_ms = clock.now_ms()
        self._link_since_ms = self._started_at_ms
        self._connected = False
        self._greet = False
        self._acks = Acks()
        self._outbox: dict[TwinKey, DesiredRow] = {}
        self._books: dict[str, SliceBook] = {}
        self._evidence: dict[str, tuple[MetricEvidence, ...]] = {}
        self._due: dict[str, float] = {}
        self._decided_in_s = 0.0
        self._refusals = Refusals()
        self._hearing = Hearing(clock, self._refusals)
        self._pulling = Pulling(releases.directory, config.pulls, clock, self._refusals, self._send_piece)
        self.refused = self._refusals.counts
        """Messages that were not taken in, by reason."""
        self.rows_stored = 0
        """Telemetry rows stored for the first time since the start."""

    def say_goodbye(self) -> None:
        """Say that the controller goes away on purpose, and wait a moment for the broker to have heard it."""
        if not self._transport.publish(
            presence_message(self._config, self._session, self._clock.now_ms(), online=False)
        ):
            return
        until_s = self._clock.monotonic_s() + GOODBYE_S
        while self._transport.unconfirmed and self._clock.monotonic_s() < until_s:
            self._transport.receive(0.05)

    def step(self, timeout_s: float) -> None:
        """Take in what has arrived, waiting at most `timeout_s` for the first of it; then do what is due.

        Raises:
            StorageError: The database failed. Nothing was acknowledged that is not stored; start again.
        """
        self._take_in(self._drain(self._pulling.wait_s(timeout_s)))
        self._pulling.step()
        self._acks.say(self._publish)
        if not self._connected:
            self._acks.clear()
        if self._is_due(
            "tick", max(self._config.controller_loop.tick_s, self._decided_in_s / DECIDING_MAX_FRACTION)
        ):
            started_s = self._clock.monotonic_s()
            self._decide()
            self._decided_in_s = self._clock.monotonic_s() - started_s
        if self._is_due("lagging", self._config.controller_loop.republish_s):
            self._ask_again()
        if self._is_due("heartbeat", HEARTBEAT_S):
            self._heartbeat()
        if self._is_due("prune", PRUNE_S):
            self._prune()
        self._say_desired()

    def _drain(self, timeout_s: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        arrival = self._transport.receive(timeout_s)
        until_s = self._clock.monotonic_s() + BATCH_S
        payload_bytes = 0
        while arrival is not None:
            arrivals.append(arrival)
            payload_bytes += len(arrival.payload) if isinstance(arrival, Message) else 0
            if (
                len(arrivals) >= BATCH_MAX
                or payload_bytes >= BATCH_BYTES_MAX
                or self._clock.monotonic_s() >= until_s
            ):
                break
            arrival = self._transport.receive(0.0)
        return arrivals

    def _take_in(self, arrivals: list[Arrival]) -> None:
        heard: list[Heard] = []
        pulls: list[PullHeard] = []
        for arrival in arrivals:
            match arrival:
                case LinkUp():
                    self._on_link_up()
                case LinkDown(reason):
                    if self._connected:
                        logger.warning("lost the broker: %s", reason)
                    self._connected = False
                    self._due.pop("heartbeat", None)
                    self._pulling.clear()
                    pulls.clear()
                case Message():
                    self._read(arrival, heard, pulls)
        if pulls:
            self._take_in_pulls(pulls)
        if heard:
            with self._store.write() as connection:
                stored = self._hearing.store(connection, heard, self._link_since_ms)
            self.rows_stored += stored.added
            self._acks.stored(stored.highest)

    def _take_in_pulls(self, pulls: list[PullHeard]) -> None:
        with self._store.read() as connection:
            known = device_store.load_many(connection, {one.device for one in pulls})
        for one in pulls:
            if one.device in known:
                self._pulling.hear(one)
            else:
                self._refuse("unknown device", one.device, "it is not enrolled (any more)")

    def _read(self, message: Message, heard: list[Heard], pulls: list[PullHeard]) -> None:
        if not message.payload:
            # An empty retained message clears the topic; it says nothing.
            return
        try:
            match ingest.read(message, self._tenant):
                case PullHeard() as pull:
                    pulls.append(pull)
                case said:
                    heard.append(said)
        except ManifestError as error:
            self._refuse("malformed", ingest.sender(message.topic) or message.topic[:200], error.message)
            # Sending the same again cannot help: the device is told, so that good rows need not wait behind it for ever.
            self._acks.refused(message)

    def _on_link_up(self) -> None:
        self._connected = True
        self._greet = True
        self._link_since_ms = self._clock.now_ms()
        self._due.pop("heartbeat", None)
        # The broker may have come back empty: say everything retained again.
        with self._store.read() as connection:
            self._outbox = device_store.load_desired(connection)
        logger.info("connected to the broker, which is told %d wishes for devices again", len(self._outbox))

    def _say_desired(self) -> None:
        if self._greet:
            self._greet = not self._transport.publish(
                presence_message(self._config, self._session, self._clock.now_ms(), online=True)
            )
        said = []
        for key, row in list(self._outbox.items()):
            if not self._publish(Leaf.DESIRED, key.device, row.payload, key.model):
                break
            del self._outbox[key]
            if not row.published:
                said.append(row)
        if said:
            with self._store.write() as connection:
                device_store.mark_published(connection, said)

    def _ask_again(self) -> None:
        """Say again what an online device has not answered to: brokers lose messages."""
        with self._store.read() as connection:
            lagging = device_store.load_lagging(connection)
        for key, row in lagging.items():
            self._outbox.setdefault(key, row)

    def _decide(self) -> None:
        with self._store.read() as connection:
            rollouts = rollout_store.load_unfinished(connection)
            if not rollouts:
                self._books.clear()
                self._evidence.clear()
                return
            fleet = device_store.load_all(connection)
            gathered = [(rollout, self._gather(connection, rollout, fleet)) for rollout in rollouts]
        for rollout, facts in gathered:
            decision = advance(rollout, facts, self._clock.now_ms())
            looked = decision.evidence not in {(), self._evidence.get(rollout.id)}
            if looked or decision.rollout != rollout or decision.assignments or decision.event:
                self._carry_out(rollout, decision)

    def _gather(self, connection: sa.Connection, rollout: Rollout, fleet: tuple[Device, ...]) -> Facts:
        book = self._books.get(rollout.id)
        if book is None:
            slice_ms = max(1, round(self._config.controller_loop.slice_s * 1000))
            book = self._books[rollout.id] = SliceBook(rollout.created_at_ms, slice_ms)
        book.update(connection)
        asked = rollout_store.load_assignments(connection, rollout.id)
        removed = removals.load(connection, rollout.id)
        return gather(rollout, fleet, asked, book.counts(), self._releases.variant_for, removed=removed)

    def _carry_out(self, rollout: Rollout, decision: Decision) -> None:
        now_ms = self._clock.now_ms()
        asked: list[DesiredRow] = []
        with self._store.write() as connection:
            if rollout_store.lock(connection, rollout.id) != rollout:
                # The operator asked for something meanwhile; the next tick decides anew.
                return
            rollout_store.save(connection, decision.rollout)
            if decision.evidence:
                rollout_store.save_evidence(connection, rollout.id, decision.evidence)
            if decision.event:
                rollout_store.save_event(connection, decision, now_ms)
            if decision.assignments:
                asked = self._assign(connection, decision, now_ms)
        self._evidence[rollout.id] = decision.evidence
        for row in asked:
            self._outbox[row.key] = row
        if decision.event:
            logger.info("rollout %s: %s", rollout.id, decision.event)
        if decision.rollout.state in FINISHED:
            self._books.pop(rollout.id, None)

    def _assign(self, connection: sa.Connection, decision: Decision, now_ms: int) -> list[DesiredRow]:
        asked, unsuited = assignments.store(connection, decision, self._releases.variant_for, now_ms)
        for one in unsuited:
            self._refuse("no variant", one.device, one.detail)
        return asked

    def _heartbeat(self) -> None:
        turned_away = self._doorkeeper.take() if self._doorkeeper else {}
        for name, more in turned_away.items():
            detail = f"{more.messages} messages, {more.payload_bytes} bytes turned away; what matters it sends again"
            self._refusals.add("over quota", name, detail, self._clock.monotonic_s(), more.messages)
        row = {
            "id": self._config.controller,
            "started_at_ms": self._started_at_ms,
            "seen_at_ms": self._clock.now_ms(),
            "connected": self._connected,
            "refused": msgspec.json.encode(dict(self.refused)).decode(),
        }
        with self._store.write() as connection:
            upsert(connection, schema.controllers, row)
            floods.add(connection, turned_away, self._clock.now_ms())

    def _prune(self) -> None:
        before_ms = self._clock.now_ms() - round(self._config.controller_loop.keep_days * _DAY_MS)
        with self._store.write() as connection:
            deleted = telemetry_store.prune(connection, before_ms)
        if deleted:
            logger.info(
                "deleted %d rows of telemetry older than %g days",
                deleted,
                self._config.controller_loop.keep_days,
            )

    def _publish(self, leaf: Leaf, device: DeviceId, payload: bytes, model: ModelName | None = None) -> bool:
        rule = RULES[leaf]
        topic = topics.device_topic(self._tenant, device, leaf, model)
        return self._transport.publish(Message(topic, payload, rule.qos, rule.retain))

    def _send_piece(self, device: DeviceId, channel: ChannelId, payload: bytes) -> bool:
        rule = RULES[Leaf.DATA]
        topic = topics.device_topic(self._tenant, device, Leaf.DATA, channel)
        return self._transport.publish(Message(topic, payload, rule.qos, rule.retain))

    def _is_due(self, what: str, every_s: float) -> bool:
        now_s = self._clock.monotonic_s()
        if now_s < self._due.get(what, now_s):
            return False
        self._due[what] = now_s + every_s
        return True

    def _refuse(self, why: str, who: str, detail: str) -> None:
        self._refusals.add(why, who, detail, self._clock.monotonic_s())
