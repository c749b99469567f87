"""A cache nearby that is asked for blobs before the fleet's own server is.

Decides who is asked: metadata always come from the server, for a cache may be old; blobs from the cache until it has
failed once, then from the server. Nothing that comes from either is trusted. A cache is sent no login.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from .errors import TransferError
from .ids import Digest
from .source import Source, Stream

logger = logging.getLogger(__name__)


class NearbySource:
    """A cache in front of a server. For one thread."""

    def __init__(self, cache: Source, server: Source) -> None:
        self._cache = cache
        self._server = server
        self._given_up = False
        self.was_asked = False
        """Whether anything came from the cache since it was last given up."""

    def give_up(self) -> None:
        """Ask the cache no more: what came from it was wrong, or broke off."""
        self._given_up, self.was_asked = True, False

    def metadata(self, name: str) -> Iterator[bytes]:
        """Yield a metadata file, from the server."""
        return self._server.metadata(name)

    @contextmanager
    def blob(self, digest: Digest, offset: int) -> Iterator[Stream]:
        """Open a blob from `offset` on, from the cache if it has it.

        Raises:
            TransferError: As the server; or the cache broke off while the pieces were read.
        """
        with ExitStack() as stack:
            if not self._given_up:
                try:
                    stream = stack.enter_context(self._cache.blob(digest, offset))
                except TransferError as error:
                    logger.info("the cache nearby has nothing: %s", error.message)
                    self.give_up()
                else:
                    self.was_asked = True
                    yield stream
                    return
            yield stack.enter_context(self._server.blob(digest, offset))
