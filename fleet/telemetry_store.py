"""Telemetry in the database: windows, events (samples by `samples`), and how far each stream is stored.

Decides that a row is stored exactly once, by its key (device, boot, seq), however often it is sent; and what is
acknowledged. Checking rows is `ingest`'s business, what the counts mean `facts`' and `drift_report`'s.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import sqlalchemy as sa

from edgeml.ids import DeviceId, Digest, ModelName, ReleaseId, model_of
from edgeml.monitor import Monitor
from edgeml.monitor import decode as decode_monitor
from edgeml.monitor import encode as encode_monitor
from edgeml.sketch import Sketch
from edgeml.telemetry import NO_VIOLATIONS, Counters, Event, InputQuality, Loss, Stream, Window

from . import schema
from .ingest import RowsHeard, judged_at_ms
from .samples import store_samples
from .store import insert_new, upsert, upsert_all

COUNTERS: Final = Counters.__struct_fields__


class StreamKey(NamedTuple):
    """Whose rows are numbered together."""

    device: DeviceId
    boot: str
    stream: Stream


class Stored(msgspec.Struct, frozen=True):
    """What storing batches came to."""

    added: int
    """Rows that were not stored before."""
    highest: dict[StreamKey, int]
    """Highest sequence number stored of each boot and stream: what is acknowledged."""


class SliceCounts(msgspec.Struct, frozen=True):
    """What one device counted with one release in one slice of time."""

    device: DeviceId
    release: ReleaseId
    slice: int
    counters: Counters


class DeviceLoss(msgspec.Struct, frozen=True):
    """What a device counted of its own rows, over all streams."""

    device: DeviceId
    loss: Loss


class StoredEvent(msgspec.Struct, frozen=True):
    """A stored event."""

    device: DeviceId
    received_at_ms: int
    event: Event


def store_rows(connection: sa.Connection, batches: Sequence[RowsHeard], received_at_ms: int) -> Stored:
    """Store batches whose rows may be there already."""
    rows = [_window_row(heard, window, received_at_ms) for heard in batches for window in heard.batch.windows]
    added = insert_new(connection, schema.windows, rows)
    rows = [_event_row(heard, event, received_at_ms) for heard in batches for event in heard.batch.events]
    added += insert_new(connection, schema.events, rows)
    added += store_samples(connection, batches, received_at_ms)
    # What is ahead of its turn says nothing of the rows before it.
    in_turn = [heard for heard in batches if not heard.ahead]
    return Stored(added, _raise_highs(connection, in_turn, received_at_ms))


class SliceBook:
    """Counts of each device, release and slice since a time, read once and then kept up to date."""

    def __init__(self, since_ms: int, slice_ms: int) -> None:
        self._since_ms = since_ms
        self._slice_ms = slice_ms
        self._last_id = 0
        self._counts: dict[tuple[DeviceId, ReleaseId, int], SliceCounts] = {}

    def update(self, connection: sa.Connection) -> bool:
        """Take in what was stored since the last time; return whether there was anything."""
        table = schema.windows
        newest = int(connection.scalar(sa.select(sa.func.max(table.c.id))) or 0)
        if newest == self._last_id:
            return False
        slice_start = (table.c.at_ms - table.c.at_ms % self._slice_ms).label("slice_start")
        sums = [sa.func.sum(table.c[name]).label(name) for name in COUNTERS]
        statement = (
            sa.select(table.c.device, table.c.release, slice_start, *sums)
            .where(table.c.id > self._last_id, table.c.id <= newest, table.c.at_ms >= self._since_ms)
            .group_by(table.c.device, table.c.release, slice_start)
        )
        for row in connection.execute(statement):
            key = (DeviceId(row.device), ReleaseId(row.release), int(row.slice_start) // self._slice_ms)
            counters = Counters(*(int(getattr(row, name)) for name in COUNTERS))
            known = self._counts.get(key)
            self._counts[key] = SliceCounts(*key, known.counters.plus(counters) if known else counters)
        self._last_id = newest
        return True

    def counts(self) -> Collection[SliceCounts]:
        """Return what was counted."""
        return self._counts.values()


def newest_releases(connection: sa.Connection, since_ms: int) -> dict[DeviceId, tuple[ReleaseId, ...]]:
    """Name of each device and model the newest release that sent windows since a time."""
    table = schema.windows
    newest = sa.func.max(table.c.at_ms)
    statement = (
        sa.select(table.c.device, table.c.release)
        .where(table.c.at_ms >= since_ms)
        .group_by(table.c.device, table.c.release)
        .order_by(table.c.device, newest, sa.func.max(table.c.id))
    )
    found: dict[DeviceId, dict[ModelName, ReleaseId]] = {}
    for row in connection.execute(statement):
        found.setdefault(DeviceId(row.device), {})[model_of(row.release)] = ReleaseId(row.release)
    return {device: tuple(releases.values()) for device, releases in found.items()}


def recent_windows(
    connection: sa.Connection, device: DeviceId, release: ReleaseId, since_ms: int, count_max: int
) -> tuple[Window, ...]:
    """Load the newest windows of a release on a device since a time, oldest first."""
    table = schema.windows
    wanted = sa.select(table).where(
        table.c.device == device, table.c.release == release, table.c.at_ms >= since_ms
    )
    rows = connection.execute(wanted.order_by(table.c.at_ms.desc(), table.c.id.desc()).limit(count_max)).all()
    return tuple(_window(row) for row in reversed(rows))


def inferences(connection: sa.Connection) -> int:
    """Inferences of every stored window."""
    return int(connection.scalar(sa.select(sa.func.sum(schema.windows.c.inferences))) or 0)


def recent_events(connection: sa.Connection, since_ms: int, count_max: int) -> tuple[StoredEvent, ...]:
    """Load the newest events, newest first."""
    table = schema.events
    statement = (
        sa.select(table)
        .where(table.c.received_at_ms >= since_ms)
        .order_by(table.c.id.desc())
        .limit(count_max)
    )
    return tuple(
        StoredEvent(
            row.device, row.received_at_ms, Event(row.seq, row.kind, row.at_ms, row.detail, row.release)
        )
        for row in connection.execute(statement)
    )


def losses(connection: sa.Connection) -> dict[DeviceId, Loss]:
    """What every device counted as produced and dropped, over its streams; a stream's newest boot says it all."""
    table = schema.stream_high
    newest: dict[tuple[str, str], Loss] = {}
    for row in connection.execute(sa.select(table).order_by(table.c.updated_at_ms)):
        newest[row.device, row.stream] = Loss(produced=row.produced, dropped=row.dropped)
    total: dict[DeviceId, Loss] = {}
    for (name, _stream), loss in newest.items():
        device = DeviceId(name)
        sum_ = total.get(device, Loss())
        total[device] = Loss(produced=sum_.produced + loss.produced, dropped=sum_.dropped + loss.dropped)
    return total


def save_monitors(
    connection: sa.Connection, release: ReleaseId, monitors: Iterable[tuple[Digest, Monitor]]
) -> None:
    """Store the monitors of a published release."""
    for digest, monitor in monitors:
        upsert(
            connection,
            schema.monitors,
            {"digest": digest, "release": release, "body": encode_monitor(monitor).decode()},
        )


def load_monitors(connection: sa.Connection) -> dict[Digest, Monitor]:
    """Load every monitor by its digest."""
    return {
        Digest(row.digest): decode_monitor(row.body.encode())
        for row in connection.execute(sa.select(schema.monitors))
    }


def prune(connection: sa.Connection, before_ms: int) -> int:
    """Delete windows, events and samples received before a time; return how many rows."""
    deleted = 0
    for table in (schema.windows, schema.events, schema.samples):
        deleted += connection.execute(table.delete().where(table.c.received_at_ms < before_ms)).rowcount
    return deleted


def _raise_highs(
    connection: sa.Connection, batches: Sequence[RowsHeard], received_at_ms: int
) -> dict[StreamKey, int]:
    table = schema.stream_high
    known = connection.execute(
        sa.select(table.c.device, table.c.boot, table.c.stream, table.c.seq).where(
            table.c.device.in_({heard.device for heard in batches})
        )
    )
    stored = {(row.device, row.boot, row.stream): int(row.seq) for row in known}
    highs: dict[StreamKey, int] = {}
    changed: dict[StreamKey, dict[str, Any]] = {}
    for heard in batches:
        key = StreamKey(heard.device, heard.batch.boot, heard.stream)
        # A batch that is sent again must not lower it.
        before = highs.get(key, stored.get((heard.device, heard.batch.boot, heard.stream.value), -1))
        highs[key] = max(heard.last_seq, before)
        changed[key] = {
            "device": heard.device,
            "boot": heard.batch.boot,
            "stream": heard.stream.value,
            "seq": highs[key],
            "produced": heard.batch.loss.produced,
            "dropped": heard.batch.loss.dropped,
            "updated_at_ms": received_at_ms,
        }
    upsert_all(connection, table, list(changed.values()))
    return highs


def _window(row: Any) -> Window:
    return Window(
        seq=row.seq,
        release=row.release,
        digest=row.digest,
        started_at_ms=row.started_at_ms,
        duration_ms=row.duration_ms,
        counters=Counters(*(getattr(row, name) for name in COUNTERS)),
        latency=msgspec.json.decode(row.latency, type=tuple[int, ...]),
        sketch=msgspec.json.decode(row.sketch, type=Sketch) if row.sketch else None,
        memory_bytes=row.memory_bytes,
        quality=msgspec.json.decode(row.quality, type=InputQuality) if row.quality else NO_VIOLATIONS,
    )


def _window_row(heard: RowsHeard, window: Window, received_at_ms: int) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(window.counters, name) for name in COUNTERS}
    row |= {
        "device": heard.device,
        "boot": heard.batch.boot,
        "seq": window.seq,
        "release": window.release,
        "digest": window.digest,
        "started_at_ms": window.started_at_ms,
        "duration_ms": window.duration_ms,
        "received_at_ms": received_at_ms,
        "at_ms": judged_at_ms(window, received_at_ms),
        "memory_bytes": window.memory_bytes,
        "latency": msgspec.json.encode(window.latency).decode(),
        "monitor": window.sketch.monitor if window.sketch else None,
        "sketch": msgspec.json.encode(window.sketch).decode() if window.sketch else None,
        "quality": None if window.quality == NO_VIOLATIONS else msgspec.json.encode(window.quality).decode(),
    }
    return row


def _event_row(heard: RowsHeard, event: Event, received_at_ms: int) -> dict[str, Any]:
    return {
        "device": heard.device,
        "boot": heard.batch.boot,
        "seq": event.seq,
        "kind": event.kind,
        "at_ms": event.at_ms,
        "received_at_ms": received_at_ms,
        "detail": event.detail,
        "release": event.release,
    }
