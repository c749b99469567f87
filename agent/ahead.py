"""Rows ahead of their turn: what is newest goes at once, however much older waits.

Decides which: while more than a batch waits, the newest events and windows of this life, at first a few, then each that
is new, a little after it is on disk. They are copies: the fleet stores them and acknowledges nothing, and they go again
in their turn, which is what nothing is lost by. A fleet that refuses one does not know such batches, and gets no more
of them over this link. Pure of sockets and clocks.
"""

from __future__ import annotations

from typing import Final

from edgeml.ids import Digest, digest_of
from edgeml.telemetry import Stream, encode_batch

from .buffer import Buffer

ROWS_MAX: Final = 20
EVERY_S: Final = 5.0
"""As long as a row waits for the disk at most."""
STREAMS: Final = frozenset({Stream.EVENTS, Stream.WINDOWS})


class Ahead:
    """What was sent ahead over the present link."""

    def __init__(self, buffer: Buffer) -> None:
        self._buffer = buffer
        self._last_seq: dict[Stream, int] = {}
        self._next_s: dict[Stream, float] = {}
        self._sent: set[Digest] = set()
        self._unwanted = False

    def on_link_up(self) -> None:
        """Begin anew: nobody knows what the old link swallowed."""
        self._last_seq.clear()
        self._next_s.clear()
        self._sent.clear()
        self._unwanted = False

    def due(self, stream: Stream, sent_seq: int, now_s: float) -> bytes | None:
        """Return a batch to send ahead; None if there is nothing new, or it is not time.

        Args:
            stream: which rows.
            sent_seq: the highest row of this life that is on its way in its turn; 0 if there is none.
            now_s: by the monotonic clock.

        Raises:
            StorageError: The buffer's disk refused.
        """
        if self._unwanted or stream not in STREAMS or now_s < self._next_s.get(stream, now_s):
            return None
        self._next_s[stream] = now_s + EVERY_S
        batch = self._buffer.newest(stream, max(sent_seq, self._last_seq.get(stream, 0)), ROWS_MAX)
        if batch is None:
            return None
        self._last_seq[stream] = batch.rows[-1].seq
        payload = encode_batch(batch.ahead())
        self._sent.add(digest_of(payload))
        return payload

    def on_refused(self, digest: Digest) -> None:
        """Hear that the fleet refuses a payload."""
        self._unwanted = self._unwanted or digest in self._sent
