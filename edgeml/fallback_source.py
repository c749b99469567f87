"""Two ways to one repository: the second is taken once the first cannot be reached.

Decides that only a peer that cannot be reached is a reason, never what it answers, and that the second way is kept to
from then on: each try of the first one would cost its timeout.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .errors import LinkDownError
from .ids import Digest
from .source import Source, Stream

logger = logging.getLogger(__name__)


class FallbackSource:
    """A source that changes to another one."""

    def __init__(self, first: Source, second: Source) -> None:
        self._current = first
        self._second = second

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a metadata file; errors as the source that is used."""
        pieces = self._current.metadata(name)
        try:
            beginning = next(pieces, b"")
        except LinkDownError as error:
            self._fall_back(error)
            pieces = self._second.metadata(name)
            beginning = next(pieces, b"")
        if beginning:
            yield beginning
            yield from pieces

    @contextmanager
    def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
        """Open a blob; errors as the source that is used."""
        with ExitStack() as stack:
            try:
                stream = stack.enter_context(self._current.blob(digest, offset))
            except LinkDownError as error:
                self._fall_back(error)
                stream = stack.enter_context(self._second.blob(digest, offset))
            yield stream

    def _fall_back(self, error: LinkDownError) -> None:
        if self._current is self._second:
            raise error
        logger.warning("%s; going on through the broker", error.message)
        self._current = self._second
