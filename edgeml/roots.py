"""The trust anchor: which root metadata of a fleet a device starts from, and whether it is this fleet's.

Decides by the chain of roots that a repository holds: a root is followed by the next version, signed by the keys of
both. A device may have been given any of them; what it has counts, and must lead to the newest. A device without one
is given what the operator names, by default the newest: keys that were replaced sign nothing for it. Expiry, and
everything else that is signed, are judged by `edgeml.trust`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]  # its documented face

from . import atomic
from .errors import ConfigError, IncompatibleError, TrustError
from .ids import Digest, digest_of

_NAME: Final = re.compile(r"([1-9][0-9]{0,8})\.root\.json", re.ASCII)


class Roots:
    """The root metadata of a repository, by version; at least one."""

    def __init__(self, files: Mapping[int, bytes]) -> None:
        self._files = files
        self._newest = max(files)

    @property
    def newest(self) -> bytes:
        """The one with the highest version."""
        return self._files[self._newest]

    def with_digest(self, digest: Digest) -> bytes | None:
        """The one with this sha256; None if there is none."""
        return next((one for one in self._files.values() if digest_of(one) == digest), None)

    def choose(self, known: bytes | None, named: bytes | None, storage: str) -> bytes:
        """Return the anchor that a device has, or else is to be given; it leads to the newest root.

        Args:
            known: what the device has; None if it has none.
            named: what the operator says it should be; None for whatever it is, and else the newest.
            storage: the device, for messages.

        Raises:
            IncompatibleError: The device trusts another fleet, or something else than is named.
            TrustError: A root is damaged, or a link of the chain is missing.
        """
        if known is not None and named is not None and known != named:
            raise IncompatibleError(
                f"{storage} has another trust anchor than the one named",
                hint="a device keeps its first; leave --anchor out to use it",
            )
        anchor = known or named or self.newest
        self._follow(anchor, storage)
        return anchor

    def _follow(self, anchor: bytes, storage: str) -> None:
        root = _parsed(anchor, f"the trust anchor of {storage}")
        first = root.signed.version
        same = self._files.get(first)
        if same is not None and _parsed(same, f"{first}.root.json").signed_bytes != root.signed_bytes:
            raise _stranger(storage)
        if first > self._newest:
            raise IncompatibleError(
                f"{storage} trusts another fleet, or this is an old copy of its repository: the device's root "
                f"has version {first}, the repository's {self._newest}",
                hint="use that fleet's newest repository",
            )
        for version in range(first + 1, self._newest + 1):
            data = self._files.get(version)
            if data is None:
                raise TrustError(
                    f"{version}.root.json is missing, by which a device that trusts version {version - 1} goes on",
                    hint="restore the repository from a backup",
                )
            following = _parsed(data, f"{version}.root.json")
            if following.signed.version != version or not following.signed.get_root_verification_result(
                root.signed, following.signed_bytes, following.signatures
            ):
                if same is None and version == first + 1:
                    raise _stranger(storage)
                raise TrustError(
                    f"{version}.root.json is not signed by the keys of version {version - 1}",
                    hint="restore the repository from a backup",
                )
            root = following


def read_roots(repository: Path) -> Roots:
    """Read the root metadata of a repository.

    Raises:
        ConfigError: There is none.
        StorageError: The disk failed.
    """
    directory = repository / "metadata"
    try:
        files = {
            int(match[1]): path.read_bytes()
            for path in (directory.iterdir() if directory.is_dir() else ())
            if (match := _NAME.fullmatch(path.name))
        }
    except OSError as error:
        raise atomic.storage_error(error, directory) from error
    if not files:
        raise ConfigError(
            f"no signed metadata in {repository}", hint="publish the bundle first: edgeml fleet publish"
        )
    return Roots(files)


def read_named(path: Path) -> bytes:
    """Read the root metadata that an operator names.

    Raises:
        ConfigError: It cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"no trust anchor at {path}: {error.strerror}",
            hint="name a root of the fleet, for example metadata/1.root.json of its repository",
        ) from error


def _parsed(data: bytes, what: str) -> Metadata[Root]:
    try:
        metadata = Metadata[Root].from_bytes(data)
    except RepositoryError as error:
        raise TrustError(f"{what} is no root metadata: {error}") from error
    if not isinstance(metadata.signed, Root):
        raise TrustError(f"{what} is metadata of another role, not of a root")
    return metadata


def _stranger(storage: str) -> IncompatibleError:
    return IncompatibleError(
        f"{storage} trusts another fleet", hint="use that fleet's repository, or an empty directory"
    )
