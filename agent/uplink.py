"""The uplink: decides which rows to send when.

One unacknowledged batch a stream at a time; sent again when its answer is late, later and later, and at once on a new
link. Events go before windows before samples: while more than a batch of a stream waits, those that matter less wait,
too, all of it goes at the `pace` of a backlog, and copies of the newest go `ahead`. Rows leave the buffer only by the controller's own acknowledgement, or one by one when it says that it will never
store them: a batch that is refused is sent again in halves until the bad row is found. Pure of sockets and clocks.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from edgeml import topics, twin
from edgeml.ids import DeviceId, Digest, TenantId, digest_of
from edgeml.telemetry import PRIORITIES, Stream, encode_batch
from edgeml.topics import RULES, Leaf
from edgeml.transport import Message
from edgeml.twin import Ack

from .ahead import Ahead
from .buffer import ROWS_PER_BATCH, Buffer
from .pace import Pace

logger = logging.getLogger(__name__)

RESEND_FIRST_S: Final = 5.0
RESEND_MAX_S: Final = 300.0


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch that was sent and not acknowledged."""

    boot: str
    last_seq: int
    rows: int
    digest: Digest
    again_at_s: float
    pause_s: float


class Uplink:
    """One device's telemetry on its way. Without a pace a backlog goes as fast as it is acknowledged."""

    def __init__(self, buffer: Buffer, tenant: TenantId, device: DeviceId, pace: Pace | None = None) -> None:
        self._buffer = buffer
        self._pace = pace
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
            if (flight is None or now_s >= flight.again_at_s) and (not was_behind or self._may_go()):
                pause_s = RESEND_FIRST_S if flight is None else min(flight.pause_s * 2, RESEND_MAX_S)
                message = self._launch(stream, now_s, pause_s)
                if message is not None:
                    messages.append(message)
                    if was_behind and self._pace is not None:
                        self._pace = self._pace.spent(self._flights[stream].rows, len(message.payload))
            if self._is_behind(stream):
                return [*self._newest(PRIORITIES[index:], now_s), *messages]
        return messages

    def _may_go(self) -> bool:
        return self._pace is None or self._pace.ready

    def _newest(self, streams: Sequence[Stream], now_s: float) -> list[Message]:
        """What goes ahead of what waits in these streams."""
        rule = RULES[Leaf.TELEMETRY]
        messages = []
        for stream in streams:
            flight = self._flights.get(stream)
            sent_seq = flight.last_seq if flight is not None and flight.boot == self._buffer.boot else 0
            payload = self._ahead.due(stream, sent_seq, now_s)
            if payload is not None:
                messages.append(Message(self._topics[stream], payload, rule.qos, rule.retain))
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
        batch = self._buffer.pending(stream, rows_max=self._rows_max[stream])
        if batch is None:
            self._flights.pop(stream, None)
            return None
        self._buffer.send(stream, batch)
        payload = encode_batch(batch)
        digest = digest_of(payload)
        self._flights[stream] = _Flight(
            batch.boot, batch.rows[-1].seq, len(batch.rows), digest, now_s + pause_s, pause_s
        )
        rule = RULES[Leaf.TELEMETRY]
        return Message(self._topics[stream], payload, rule.qos, rule.retain)
