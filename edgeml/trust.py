"""Decides what may be installed: signed metadata by The Update Framework.

python-tuf does the specification's client workflow (rollback, freeze, mix-and-match, key rotation). What is decided
here: which facts a signed target carries, and how its errors map to ours. Which clock its expiry is judged by is
`edgeml.trusttime`'s business; fetching the blob is `edgeml.download`'s business; what a device does with it, the agent's.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final

import msgspec
from tuf.api import exceptions as tuf_errors
from tuf.ngclient.config import UpdaterConfig
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from . import atomic
from .errors import (
    ConfigError,
    EdgemlError,
    ExpiredError,
    IncompatibleError,
    PermanentTransferError,
    TransferError,
    TrustError,
)
from .ids import Digest, is_digest
from .source import Source
from .trustfacts import SignedFacts, SignedTarget
from .trusttime import FLOOR, TrustedTime, trusted_time

__all__ = ["CHUNK_BYTES", "ROOT", "SignedFacts", "SignedTarget", "TrustStore", "TrustedTime"]

CHUNK_BYTES: Final = 256 << 10
ROOT: Final = "root.json"


class TrustStore:
    """A device's trust: the root it was given and the metadata it has seen, in one directory.

    Raises:
        ConfigError: The directory holds no root metadata.
        TrustError: The root metadata is not valid.
    """

    def __init__(self, directory: Path, source: Source, *, now_ms: int) -> None:
        self._directory = directory
        self._source = source
        self.time = trusted_time(directory, now_ms)
        self._updater = self._new_updater()
        self._is_fresh = False

    def refresh(self) -> None:
        """Fetch and check the newest metadata.

        Raises:
            ExpiredError: It has expired.
            TrustError: It is wrongly signed, expired, or older than what was trusted before.
            TransferError: It could not be fetched.
            StorageError: It could not be kept.
        """
        if self._is_fresh:
            # An updater refreshes once in its life.
            self._updater = self._new_updater()
            self._is_fresh = False
        with _mapped_errors(self._directory):
            self._updater.refresh()
        self._is_fresh = True
        atomic.write_bytes(self._directory / FLOOR, str(self.time.at_ms).encode())

    def target(self, path: str) -> SignedTarget:
        """Return what is signed about a variant; refreshes first if needed.

        Raises:
            TrustError: Nothing is signed under this path, or what is signed is not ours.
            TransferError: Metadata could not be fetched.
        """
        if not self._is_fresh:
            self.refresh()
        with _mapped_errors(self._directory):
            info = self._updater.get_targetinfo(path)
        if info is None:
            raise TrustError(f"no signed release {path}", hint="publish it first, or check its name")
        digest = info.hashes.get("sha256", "")
        try:
            facts = msgspec.convert(info.unrecognized_fields.get("custom"), SignedFacts)
        except msgspec.ValidationError as error:
            raise IncompatibleError(f"signed metadata of {path} is of another format: {error}") from error
        if not is_digest(digest):
            raise TrustError(f"signed metadata of {path} has no sha256")
        return SignedTarget(path, Digest(digest), info.length, facts)

    def target_with_digest(self, digest: Digest) -> SignedTarget:
        """Find the signed variant whose bundle has this digest.

        Raises:
            TrustError: There is none.
            TransferError: Metadata could not be fetched.
        """
        if not self._is_fresh:
            self.refresh()
        targets = self._updater._trusted_set.targets.targets  # noqa: SLF001  # no public way to list targets
        for path, info in targets.items():
            if info.hashes.get("sha256") == digest:
                return self.target(path)
        raise TrustError(f"no signed release has digest {digest[:12]}…", hint="publish this bundle first")

    def _new_updater(self) -> Updater:
        try:
            root = (self._directory / ROOT).read_bytes()
        except OSError as error:
            raise ConfigError(
                f"{self._directory} holds no {ROOT}", hint="give the device its root: edgeml fleet device add"
            ) from error
        cache = self._directory / "metadata"
        config = UpdaterConfig(prefix_targets_with_hash=False)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            updater = Updater(
                str(cache), "edgeml:", fetcher=_Fetcher(self._source), config=config, bootstrap=root
            )
        except tuf_errors.RepositoryError as error:
            raise TrustError(f"the root metadata is not valid: {error}") from error
        except OSError as error:
            raise atomic.storage_error(error, cache) from error
        # Not public API: tuf reads the machine's clock at construction and offers no other way to set it.
        updater._trusted_set.reference_time = dt.datetime.fromtimestamp(  # noqa: SLF001
            self.time.at_ms / 1000, dt.UTC
        )
        return updater


class _Fetcher(FetcherInterface):
    """Lets tuf read metadata from a Source."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.rpartition("/")[2]
        try:
            # Piece by piece: tuf stops reading at its limit, and a hostile server may never stop sending.
            yield from self._source.metadata(name)
        except PermanentTransferError as error:
            raise tuf_errors.DownloadHTTPError(str(error), 404) from error
        except TransferError as error:
            raise tuf_errors.DownloadError(str(error)) from error


class _mapped_errors:  # noqa: N801 - used as a statement
    """Maps tuf's errors to ours."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise our error for tuf's.

        Raises:
            TrustError, TransferError, StorageError: As the cause says.
        """
        match error:
            case tuf_errors.ExpiredMetadataError():
                raise ExpiredError(
                    f"signed metadata has expired: {error}",
                    hint="sign a new timestamp (edgeml fleet serve does it), or set this machine's clock",
                ) from error
            case tuf_errors.DownloadHTTPError():
                raise PermanentTransferError(
                    f"signed metadata is missing: {error}", hint="check the repository's address"
                ) from error
            case tuf_errors.DownloadError():
                cause = error.__cause__
                raise TransferError(
                    f"signed metadata cannot be fetched: {error}",
                    retry_after_s=cause.retry_after_s if isinstance(cause, TransferError) else 0.0,
                ) from error
            case tuf_errors.RepositoryError():
                raise TrustError(
                    f"signed metadata is refused: {error}",
                    hint="check that the device's root.json is this fleet's",
                ) from error
            case EdgemlError():
                return
            case OSError():
                raise atomic.storage_error(error, self._directory) from error
