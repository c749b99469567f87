"""The uplink: decides which rows to send when.

One unacknowledged batch a stream at a time; sent again when its answer is late, later and later, and at once on a new
link. Events go before windows before samples: while more than a batch of a stream waits, those that matter less wait,
too, all of it goes at the `pace` of a backlog, and copies of the newest go `ahead`. Rows leave the buffer only by the
controller's own acknowledgement, or one by one when it says that it will never store them: a batch that is refused is
sent again in halves until the bad row is found. What the day's budget of the network does not allow waits in the buffer,
is looked at again every HOLD_S, and has no copies meanwhile. Pure of sockets and clocks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from edgeml import topics, twin
from edgeml.ids import DeviceId, Digest, TenantId, digest_of
from edgeml.telemetry import BATCH_BYTES_MAX, PRIORITIES, Batch, Stream, encode_batch
from edgeml.topics import RULES, Leaf
from edgeml.transport import Message
from edgeml.twin import Ack

from .ahead import Ahead
from .buffer import ROWS_PER_BATCH, Buffer
from .pace import Pace

logger = logging.getLogger(__name__)

RESEND_FIRST_S: Final = 5.0
RESEND_MAX_S: Final = 300.0
HOLD_S: Final = 60.0
"""Between two looks at a stream that the budget holds back: reading and packing a batch in vain costs time."""


class Allowance(Protocol):
    """What may still be taken of the network today."""

    def affords(self, stream: Stream, length_bytes: int) -> bool:
        """Tell whether a message of so many bytes may be sent now."""
        ...

    def take(self, stream: Stream, length_bytes: int) -> bool:
        """Set aside what a message of so many bytes will cost, if it may be sent now."""
        ...

    def longest_bytes(self, stream: Stream) -> int | None:
        """What a message may have to be sent on any day at all; None: anything."""
        ...


class Unlimited:
    """An allowance without an end."""

    def affords(self, stream: Stream, length_bytes: int) -> bool:  # noqa: ARG002 - anything
        """Yes."""
        return True

    def take(self, stream: Stream, length_bytes: int) -> bool:  # noqa: ARG002 - anything
        """Yes."""
        return True

    def longest_bytes(self, stream: Stream) -> int | None:  # noqa: ARG002 - anything
        """Anything."""
        return None


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch that was sent and not acknowledged."""

    boot: str
    last_seq: int
    rows: int
    digest: Digest
    again_at_s: float
    pause_s: float


@dataclass(frozen=True, slots=True)
class _Hold:
    """What waits because of the budget: the length of its oldest row as a message, and when it is looked at again."""

    length_bytes: int
    again_at_s: float


class Uplink:
    """One device's telemetry on its way. Without a pace a backlog goes as fast as it is acknowledged."""

    def __init__(
        self,
        buffer: Buffer,
        tenant: TenantId,
        device: DeviceId,
        pace: Pace | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        self._buffer = buffer
        self._pace = pace
        self._allowance = allowance or Unlimited()
        self._holds: dict[Stream, _Hold] = {}
        self._ahead = Ahead(buffer)
        self._topics = {
            stream: topics.device_topic(tenant, device, Leaf.TELEMETRY, stream) for stream in Stream
        }
        self._flights: dict[Stream, _Flight] = {}
        self._rows_max = dict.fromkeys(Stream, ROWS_PER_BATCH)

    def on_link_up(self, now_s: float) -> None:
        """Send again at once: nobody knows what the old link swallowed."""
        self._flights.clear()
        self._ahead.on_link_up()
        if self._pace is not None:
            self._pace = self._pace.resumed(now_s, self._produced())

    def due(self, now_s: float, *, link_up: bool) -> list[Message]:
        """Return what to send now.

        Raises:
            StorageError: The buffer's disk refused.
        """
        if not link_up:
            return []
        if self._pace is not None:
            self._pace = self._pace.at(now_s, self._produced())
        messages: list[Message] = []
        for index, stream in enumerate(PRIORITIES):
            flight = self._flights.get(stream)
            was_behind = self._is_behind(stream)
            is_due = (flight is None or now_s >= flight.again_at_s) and not self._is_on_hold(stream, now_s)
            if is_due and (not was_behind or self._may_go()):
                pause_s = RESEND_FIRST_S if flight is None else min(flight.pause_s * 2, RESEND_MAX_S)
                message = self._launch(stream, now_s, pause_s)
                if message is not None:
                    messages.append(message)
                    if was_behind and self._pace is not None:
                        self._pace = self._pace.spent(self._flights[stream].rows, len(message.payload))
            if self._is_behind(stream):
                return [*self._newest(PRIORITIES[index:], now_s), *messages]
        return messages

    def held_back(self, stream: Stream) -> int:
        """Rows that wait because of the budget."""
        return self._buffer.held(stream) if stream in self._holds else 0

    def _is_on_hold(self, stream: Stream, now_s: float) -> bool:
        hold = self._holds.get(stream)
        return hold is not None and now_s < hold.again_at_s

    def _may_go(self) -> bool:
        return self._pace is None or self._pace.ready

    def _newest(self, streams: Sequence[Stream], now_s: float) -> list[Message]:
        """What goes ahead of what waits in these streams."""
        rule = RULES[Leaf.TELEMETRY]
        messages = []
        for stream in streams:
            if stream in self._holds:
                # What copies take, the rows themselves would lack.
                continue
            flight = self._flights.get(stream)
            sent_seq = flight.last_seq if flight is not None and flight.boot == self._buffer.boot else 0
            payload = self._ahead.due(stream, sent_seq, now_s)
            topic = self._topics[stream]
            if payload is not None and self._allowance.take(stream, len(topic) + len(payload)):
                messages.append(Message(topic, payload, rule.qos, rule.retain))
        return messages

    def _produced(self) -> int:
        return sum(self._buffer.loss(stream).produced for stream in Stream)

    def _is_behind(self, stream: Stream) -> bool:
        """Tell whether more waits than what is on its way: it was offline for long."""
        flight = self._flights.get(stream)
        return self._buffer.held(stream) > (0 if flight is None else flight.rows) + ROWS_PER_BATCH

    def on_ack(self, payload: bytes, _now_s: float) -> None:
        """Hear that rows are stored, or refused.

        Raises:
            ManifestError: It is no such message.
            StorageError: The buffer's disk refused; the rows are sent and acknowledged again.
        """
        ack = twin.decode(payload, Ack)
        if ack.refused is None:
            self._buffer.acknowledge(ack)
        else:
            self._ahead.on_refused(ack.refused)
        for stream, flight in list(self._flights.items()):
            if stream.value != ack.stream:
                continue
            if ack.refused is not None and ack.refused == flight.digest:
                self._on_refused(stream, flight)
            elif ack.refused is None and flight.boot == ack.boot and flight.last_seq <= ack.seq:
                self._rows_max[stream] = min(self._rows_max[stream] * 2, ROWS_PER_BATCH)
                del self._flights[stream]

    def _on_refused(self, stream: Stream, flight: _Flight) -> None:
        if flight.rows > 1:
            self._rows_max[stream] = flight.rows // 2
        elif self._buffer.refuse(stream, flight.boot, flight.last_seq):
            logger.warning(
                "the fleet refused row %d of boot %s in %s; it is dropped",
                flight.last_seq,
                flight.boot,
                stream.value,
            )
        del self._flights[stream]

    def _launch(self, stream: Stream, now_s: float, pause_s: float) -> Message | None:
        # Read again for every sending: what was evicted meanwhile is counted as dropped and not sent any more.
        batch, payload = self._affordable(stream, now_s)
        if batch is None:
            self._flights.pop(stream, None)
            return None
        self._buffer.send(stream, batch)
        digest = digest_of(payload)
        self._flights[stream] = _Flight(
            batch.boot, batch.rows[-1].seq, len(batch.rows), digest, now_s + pause_s, pause_s
        )
        rule = RULES[Leaf.TELEMETRY]
        return Message(self._topics[stream], payload, rule.qos, rule.retain)

    def _affordable(self, stream: Stream, now_s: float) -> tuple[Batch | None, bytes]:
        """Return the oldest rows that may be sent now, and as bytes; note whether the budget holds the stream back."""
        hold = self._holds.pop(stream, None)
        if hold is not None and not self._allowance.affords(stream, hold.length_bytes):
            self._holds[stream] = _Hold(hold.length_bytes, now_s + HOLD_S)
            return None, b""
        topic_bytes = len(self._topics[stream])
        longest = self._allowance.longest_bytes(stream)
        bytes_max = BATCH_BYTES_MAX if longest is None else min(BATCH_BYTES_MAX, longest - topic_bytes)
        rows_max = self._rows_max[stream]
        while batch := self._buffer.pending(stream, bytes_max, rows_max):
            payload = encode_batch(batch)
            if self._allowance.take(stream, topic_bytes + len(payload)):
                return batch, payload
            if len(batch.rows) == 1:
                self._holds[stream] = _Hold(topic_bytes + len(payload), now_s + HOLD_S)
                break
            rows_max = len(batch.rows) // 2
        return None, b""
