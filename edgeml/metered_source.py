"""A source whose bytes go through a meter: what a fetch takes of the network.

Decides what is counted (bodies, and about what a request costs besides), and that bundles stop at the allowance while
metadata, which are small, do not. How a rate is kept is decided in `meter`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .ids import Digest
from .meter import Meter
from .source import Source, Stream

REQUEST_BYTES: Final = 1 << 10
"""What a request costs besides its body: headers of both sides, and its part of a connection."""


class MeteredSource:
    """A source within terms. For one thread."""

    def __init__(self, source: Source, meter: Meter) -> None:
        self._source = source
        self._meter = meter

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a metadata file."""
        self._meter.take(REQUEST_BYTES)
        for piece in self._source.metadata(name):
            self._meter.take(len(piece))
            yield piece

    @contextmanager
    def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
        """Open a blob from `offset` on.

        Raises:
            PostponedError: The allowance is used up, now or while the pieces are read; what came was handed over.
            TransferError: As the source.
        """
        self._meter.check()
        self._meter.take(REQUEST_BYTES)
        with self._source.blob(digest, offset) as stream:
            yield Stream(stream.offset, self._metered(stream.pieces))

    def _metered(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._meter.take(len(piece))
            yield piece
            self._meter.check()
