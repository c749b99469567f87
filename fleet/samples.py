"""Sampled inputs in the database: what devices that were asked to send them saw.

Decides that a sample is stored exactly once, by its key (device, boot, seq); how many bytes of them are kept, of a device
and in all, the oldest going first; and which are found by a filter. Checking rows is `ingest`'s business, writing a file
that one can train on `samples_export`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from edgeml.ids import DeviceId, ReleaseId
from edgeml.telemetry import Sample, Why, encode_row

from . import schema
from .ingest import RowsHeard
from .store import insert_new

DEVICE_BYTES_MAX: Final = 64 << 20
"""Bytes of samples that are kept of one device."""
TOTAL_BYTES_MAX: Final = 2 << 30
"""Bytes of samples that are kept in all."""
_ROWS_PER_READ: Final = 100


class Filter(msgspec.Struct, frozen=True):
    """Which samples are meant: all that agree with what is set. `since_ms` is when they came in."""

    device: DeviceId | None = None
    release: ReleaseId | None = None
    model: str | None = None
    since_ms: int = 0


class SampleCount(msgspec.Struct, frozen=True):
    """What is stored of one device and release."""

    device: DeviceId
    release: ReleaseId
    uncertain: int
    random: int
    stored_bytes: int
    oldest_ms: int
    newest_ms: int
    """When they came in, Unix ms."""


class StoredSample(msgspec.Struct, frozen=True):
    """A stored sample."""

    device: DeviceId
    boot: str
    sample: Sample


def store_samples(connection: sa.Connection, batches: Sequence[RowsHeard], received_at_ms: int) -> int:
    """Store samples whose rows may be there already; return how many were not."""
    rows = [_row(heard, sample, received_at_ms) for heard in batches for sample in heard.batch.samples]
    added = insert_new(connection, schema.samples, rows)
    if added:
        table = schema.samples
        for device in {row["device"] for row in rows}:
            _shrink(connection, table.c.device == device, DEVICE_BYTES_MAX)
        _shrink(connection, sa.true(), TOTAL_BYTES_MAX)
    return added


def count_samples(connection: sa.Connection, wanted: Filter) -> tuple[SampleCount, ...]:
    """Count what is stored, by device and release."""
    table = schema.samples

    def of(why: Why) -> sa.ColumnElement[int]:
        return sa.func.sum(sa.case((table.c.why == why.value, 1), else_=0))

    statement = (
        sa.select(
            table.c.device,
            table.c.release,
            of(Why.UNCERTAIN).label("uncertain"),
            of(Why.RANDOM).label("random"),
            sa.func.sum(table.c.body_bytes).label("stored_bytes"),
            sa.func.min(table.c.received_at_ms).label("oldest_ms"),
            sa.func.max(table.c.received_at_ms).label("newest_ms"),
        )
        .where(*_conditions(wanted))
        .group_by(table.c.device, table.c.release)
        .order_by(table.c.device, table.c.release)
    )
    return tuple(
        SampleCount(
            DeviceId(row.device),
            ReleaseId(row.release),
            int(row.uncertain),
            int(row.random),
            int(row.stored_bytes),
            row.oldest_ms,
            row.newest_ms,
        )
        for row in connection.execute(statement)
    )


def newest_samples(connection: sa.Connection, wanted: Filter, count_max: int) -> Iterator[StoredSample]:
    """Yield the newest samples, newest first."""
    table = schema.samples
    before, left = None, count_max
    while left > 0:
        statement = sa.select(table.c.id, table.c.device, table.c.boot, table.c.body).where(
            *_conditions(wanted)
        )
        if before is not None:
            statement = statement.where(table.c.id < before)
        rows = connection.execute(
            statement.order_by(table.c.id.desc()).limit(min(left, _ROWS_PER_READ))
        ).all()
        for row in rows:
            yield StoredSample(DeviceId(row.device), row.boot, msgspec.json.decode(row.body, type=Sample))
        if not rows:
            return
        before, left = rows[-1].id, left - len(rows)


def _conditions(wanted: Filter) -> list[sa.ColumnElement[bool]]:
    table = schema.samples
    conditions: list[sa.ColumnElement[bool]] = [table.c.received_at_ms >= wanted.since_ms]
    if wanted.device is not None:
        conditions.append(table.c.device == wanted.device)
    if wanted.release is not None:
        conditions.append(table.c.release == wanted.release)
    if wanted.model is not None:
        conditions.append(table.c.release.startswith(f"{wanted.model}@", autoescape=True))
    return conditions


def _shrink(connection: sa.Connection, whose: sa.ColumnElement[bool], bytes_max: int) -> None:
    """Delete the oldest until they are within their bytes."""
    table = schema.samples
    excess = int(connection.scalar(sa.select(sa.func.sum(table.c.body_bytes)).where(whose)) or 0) - bytes_max
    if excess <= 0:
        return
    last = None
    found = connection.execute(sa.select(table.c.id, table.c.body_bytes).where(whose).order_by(table.c.id))
    for row in found:
        last, excess = row.id, excess - row.body_bytes
        if excess <= 0:
            break
    found.close()
    connection.execute(table.delete().where(whose, table.c.id <= last))


def _row(heard: RowsHeard, sample: Sample, received_at_ms: int) -> dict[str, Any]:
    body = encode_row(sample)
    return {
        "device": heard.device,
        "boot": heard.batch.boot,
        "seq": sample.seq,
        "release": sample.release,
        "why": sample.why.value,
        "received_at_ms": received_at_ms,
        "body_bytes": len(body),
        "body": body,
    }
