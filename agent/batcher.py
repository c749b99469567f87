"""The batcher: how many of the oldest rows of a stream one message can carry.

Decides where a batch ends: at its size on the wire, at what the fleet is willing to inflate, or before a row that cannot
be read. Guesses by how much rows shrink from the batch before, for compressing too much is slow on a small device. Pure;
reading and dropping rows is `buffer`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from edgeml.telemetry import (
    BATCH_RAW_BYTES_MAX,
    ROW_TYPES,
    Batch,
    DropReason,
    Event,
    Loss,
    Row,
    Sample,
    Stream,
    Window,
    encode_batch,
)

from .ring import StoredRow

ROW_BYTES_MAX: Final = BATCH_RAW_BYTES_MAX - 1024
"""A longer row would not fit into a batch with its envelope."""
_COMPRESSION_FIRST: Final = 4.0
"""By how much rows are thought to shrink before a batch has shown it."""

Date = Callable[[StoredRow, Row], Row]


class Batcher:
    """Makes batches of one stream. `date` gives a row the time by which it is to be sent."""

    def __init__(self, stream: Stream, date: Date) -> None:
        self._stream = stream
        self._date = date
        self._compression = _COMPRESSION_FIRST

    def fill(self, found: Sequence[StoredRow], loss: Loss, bytes_max: int) -> Batch | DropReason:
        """Put the first of these rows, all of one boot, into a batch; or say why the very first fits into none."""
        rows = self._readable(found, int(bytes_max * self._compression))
        while rows:
            batch = _batch(found[0].boot, rows, loss)
            size_bytes = len(encode_batch(batch))
            self._compression = sum(len(row.payload or b"") for row in found[: len(rows)]) / size_bytes
            if size_bytes <= bytes_max:
                return batch
            if len(rows) == 1:
                return DropReason.TOO_LONG
            rows = rows[: max(1, min(len(rows) - 1, len(rows) * bytes_max // size_bytes))]
        return DropReason.UNREADABLE

    def _readable(self, found: Sequence[StoredRow], raw_bytes_max: int) -> list[Row]:
        rows: list[Row] = []
        room = min(raw_bytes_max, ROW_BYTES_MAX)
        for stored in found:
            if stored.payload is None:
                break
            room -= len(stored.payload) + 1
            if rows and room < 0:
                break
            try:
                row = msgspec.json.decode(stored.payload, type=ROW_TYPES[self._stream])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                break
            # Its ack would name another row: it could never be deleted, and all others would wait behind it.
            if row.seq != stored.seq:
                break
            rows.append(self._date(stored, row))
        return rows


def _batch(boot: str, rows: Sequence[Row], loss: Loss) -> Batch:
    return Batch(
        boot=boot,
        windows=tuple(row for row in rows if isinstance(row, Window)),
        events=tuple(row for row in rows if isinstance(row, Event)),
        samples=tuple(row for row in rows if isinstance(row, Sample)),
        loss=loss,
    )
