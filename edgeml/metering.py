"""A source that counts, slows down and stops: what a fetch may take of the network.

Decides what is counted (what the kernel says, or bodies and about what a request costs besides), how a rate is kept (by pausing between pieces;
the peer then waits too), and that bundles stop at the allowance while metadata, which are small, do not. How much may be
taken is the agent's business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from .errors import PostponedError
from .ids import Digest
from .source import Source, Stream
from .wire import WireMeter

REQUEST_BYTES: Final = 1 << 10
"""What a request costs besides its body: headers of both sides, and its part of a connection."""
TELL_BYTES: Final = 256 << 10
TELL_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What a fetch may take; None is no limit."""

    allowance_bytes: int | None = None
    bytes_per_s: float | None = None
    wait_s: float = 0.0
    """When the allowance is used up, until there is a new one."""
    tell_bytes: int = TELL_BYTES
    """How much may be taken without telling."""


class MeteredSource:
    """A source within terms. For one thread."""

    def __init__(
        self,
        source: Source,
        terms: Terms,
        tell: Callable[[int], None] = lambda _received: None,
        meter: WireMeter | None = None,
    ) -> None:
        """Wrap a source.

        Args:
            source: what is asked.
            terms: what may be taken.
            tell: hears of all bytes taken so far, at least every `tell_bytes` or TELL_EVERY_S.
            meter: counts the source's connections; without it, what they cost is guessed.
        """
        self.received_bytes = 0
        self._meter = meter
        self._source = source
        self._terms = terms
        self._tell = tell
        self._told_bytes = 0
        self._told_s = self._began_s = time.monotonic()

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a metadata file."""
        self._take(REQUEST_BYTES)
        for piece in self._source.metadata(name):
            self._take(len(piece))
            yield piece

    @contextmanager
    def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
        """Open a blob from `offset` on.

        Raises:
            PostponedError: The allowance is used up, now or while the pieces are read; what came was handed over.
            TransferError: As the source.
        """
        self._stop_if_used_up()
        self._take(REQUEST_BYTES)
        with self._source.blob(digest, offset) as stream:
            yield Stream(stream.offset, self._metered(stream.pieces))

    def settle(self) -> None:
        """Tell what was taken and not told yet."""
        self._look()
        if self.received_bytes > self._told_bytes:
            self._told_bytes, self._told_s = self.received_bytes, time.monotonic()
            self._tell(self.received_bytes)

    def _metered(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._take(len(piece))
            yield piece
            self._stop_if_used_up()

    def _look(self) -> None:
        if self._meter is not None:
            self.received_bytes = max(self.received_bytes, self._meter.look())

    def _take(self, count: int) -> None:
        if self._meter is None:
            self.received_bytes += count
        self._look()
        due = self.received_bytes - self._told_bytes >= self._terms.tell_bytes
        if due or time.monotonic() - self._told_s >= TELL_EVERY_S:
            self.settle()
        if self._terms.bytes_per_s is not None:
            # From the beginning, so that what a slow network left over may be made up for later.
            ahead_s = self.received_bytes / self._terms.bytes_per_s - (time.monotonic() - self._began_s)
            if ahead_s > 0:
                time.sleep(ahead_s)

    def _stop_if_used_up(self) -> None:
        allowance = self._terms.allowance_bytes
        if allowance is not None and self.received_bytes >= allowance:
            raise PostponedError(
                f"the network's budget of today is used up after {self.received_bytes} bytes",
                wait_s=self._terms.wait_s,
                hint="budget.network_bytes_per_day; it goes on tomorrow",
            )
