"""The intake: a parcel into the inbox of a running agent, file by file, over its unix socket.

Decides where a file that is sent may lie, how long it may be, and that nobody else's files are touched. Who may send is
decided by the rights of the socket's file: over TCP there is no intake. What is put there is trusted no more than what a
server sends; the device checks signatures, digest, profile and release counter itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from edgeml import atomic
from edgeml.errors import BudgetError, ConfigError
from edgeml.ids import Digest, digest_of
from edgeml.twin import MESSAGE_BYTES_MAX

from .flash import DESIRED, INBOX, ROOT, TRUST, share_metadata

METADATA_BYTES_MAX: Final = 4 << 20
NAMES_MAX: Final = 64
"""Parcels in the inbox at once; more would be a way to fill the disk with names."""
_NAME: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
_METADATA: Final = re.compile(
    r"repository/metadata/(?:[0-9]{1,9}\.)?(?:root|targets|snapshot|timestamp)\.json", re.ASCII
)
_BLOB: Final = re.compile(r"repository/blobs/sha256/[0-9a-f]{64}", re.ASCII)


class Intake:
    """What may be put into a device's inbox.

    Args:
        storage: the device's storage directory.
        length_max_bytes: the largest blob.
    """

    def __init__(self, storage: Path, length_max_bytes: int) -> None:
        self._storage = storage
        self._length_max_bytes = length_max_bytes

    def anchor(self) -> Digest | None:
        """Digest of the trust anchor, so that a sender may know before it sends; None if there is none.

        Raises:
            StorageError: The disk failed.
        """
        path = self._storage / TRUST / ROOT
        try:
            return digest_of(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise atomic.storage_error(error, path) from error

    def length_max_bytes(self, path: str) -> int:
        """How long this file of a parcel may be.

        Raises:
            ConfigError: There is no such file in a parcel.

        >>> Intake(Path("/s"), 10).length_max_bytes("repository/blobs/sha256/" + "a" * 64)
        10
        """
        if path == DESIRED:
            return MESSAGE_BYTES_MAX
        if _METADATA.fullmatch(path):
            return METADATA_BYTES_MAX
        if _BLOB.fullmatch(path):
            return self._length_max_bytes
        raise ConfigError(f"no file of a parcel is called {path[:80]!r}")

    @contextmanager
    def receiving(self, name: str, path: str) -> Iterator[IO[bytes]]:
        """Give a file to write to, which appears under its name when all is written.

        Raises:
            ConfigError: No parcel or no file of one is called so.
            BudgetError: Too many parcels wait already.
            StorageError: The disk refused.
        """
        self.length_max_bytes(path)
        if not _NAME.fullmatch(name):
            raise ConfigError(f"no parcel is called {name[:80]!r}", hint="16 hexadecimal digits")
        inbox = self._storage / INBOX
        waiting = len(list(inbox.iterdir())) if inbox.exists() else 0
        if not (inbox / name).exists() and waiting >= NAMES_MAX:
            raise BudgetError(
                f"{waiting} parcels wait already", budget=NAMES_MAX, observed=waiting, unit="parcels"
            )
        target = inbox / name / path
        if path == DESIRED:
            share_metadata(self._storage, name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with atomic.replacing(target) as temporary, temporary.open("wb") as file:
                yield file
        except OSError as error:
            raise atomic.storage_error(error, target) from error
