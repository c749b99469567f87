"""Rows that wait in memory to be written to the disk, in the order in which they were made.

Decides which goes when there are too many: the oldest of the stream that matters least. When they are written, and how
many may wait, is `buffer`'s business.
"""

from __future__ import annotations

from collections.abc import Iterator

from edgeml.telemetry import PRIORITIES, Stream


class Unwritten:
    """What a buffer has not written yet. `bytes` is their length, `since_s` when the first of them came."""

    def __init__(self) -> None:
        self._rows: list[tuple[Stream, int, bytes]] = []
        self.bytes = 0
        self.since_s = 0.0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[Stream, int, bytes]]:
        """Yield stream, number and line of each."""
        return iter(self._rows)

    def add(self, stream: Stream, seq: int, line: bytes, now_s: float) -> None:
        """Let a row wait."""
        if not self._rows:
            self.since_s = now_s
        self._rows.append((stream, seq, line))
        self.bytes += len(line)

    def of(self, stream: Stream) -> list[tuple[int, bytes]]:
        """Number and line of those of one stream."""
        return [(seq, line) for one, seq, line in self._rows if one is stream]

    def count(self, stream: Stream) -> int:
        """How many of one stream wait."""
        return sum(one is stream for one, _, _ in self._rows)

    def clear(self) -> None:
        """Hear that all are written."""
        self._rows.clear()
        self.bytes = 0

    def forget_one(self) -> Stream:
        """Give up the oldest of the stream that matters least and has any; there must be one. Return its stream."""
        stream = next(one for one in reversed(PRIORITIES) if self.count(one))
        index = next(i for i, row in enumerate(self._rows) if row[0] is stream)
        self.bytes -= len(self._rows.pop(index)[2])
        return stream
