"""By which clock each row of this life was dated, so that one can be dated again when the clock is set.

Decides when a clock was set rather than merely ran a little fast, and by how much a row's time is then off. Within one
life of the agent the monotonic clock relates any row to any moment; rows of earlier lives cannot be related, and keep
the time they have. A row that was sent may be stored already: sent again, it says what it said before. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edgeml.clock import Clock
from edgeml.telemetry import Stream

JUMP_MS: Final = 2000
"""Wall and monotonic clocks part by less than this without anyone having set one."""
SETTINGS_MAX: Final = 64
"""Settings of the clock that are remembered for a stream; of more, the oldest are taken for one."""


@dataclass(frozen=True, slots=True)
class _Span:
    """Rows from this number on were dated by a wall clock that was so far ahead of the monotonic one."""

    first_seq: int
    offset_ms: int


def offset_ms(clock: Clock) -> int:
    """By how much the wall clock is ahead of the monotonic one now."""
    return clock.now_ms() - round(clock.monotonic_s() * 1000)


@dataclass(frozen=True, slots=True)
class _Sent:
    """Rows up to this number were sent, the newest of them by a wall clock that was so far ahead."""

    last_seq: int
    offset_ms: int


class Timeline:
    """The settings of the clock in this life."""

    def __init__(self) -> None:
        self._spans: dict[Stream, list[_Span]] = {stream: [] for stream in Stream}
        self._sent: dict[Stream, list[_Sent]] = {stream: [] for stream in Stream}

    def dated(self, stream: Stream, seq: int, by_offset_ms: int) -> None:
        """Hear by which clock a new row is dated."""
        spans = self._spans[stream]
        if spans and abs(spans[-1].offset_ms - by_offset_ms) < JUMP_MS:
            return
        spans.append(_Span(seq, by_offset_ms))
        if len(spans) > SETTINGS_MAX:
            del spans[0]

    def sent(self, stream: Stream, seq: int, by_offset_ms: int) -> None:
        """Hear that rows up to this one were sent; those that had not been were dated by this clock."""
        sent = self._sent[stream]
        if sent and abs(sent[-1].offset_ms - by_offset_ms) < JUMP_MS:
            by_offset_ms = sent.pop().offset_ms
        sent.append(_Sent(seq, by_offset_ms))
        if len(sent) > SETTINGS_MAX:
            del sent[0]

    def shift_ms(self, stream: Stream, seq: int, now_offset_ms: int) -> int:
        """Say by how much a row's time must be moved to agree with the clock of now; 0 if nobody set the clock.

        Of a row that was sent, the clock of then.
        """
        spans = self._spans[stream]
        now_offset_ms = next(
            (one.offset_ms for one in self._sent[stream] if seq <= one.last_seq), now_offset_ms
        )
        span = next((one for one in reversed(spans) if one.first_seq <= seq), spans[0] if spans else None)
        if span is None or abs(now_offset_ms - span.offset_ms) < JUMP_MS:
            return 0
        return now_offset_ms - span.offset_ms
