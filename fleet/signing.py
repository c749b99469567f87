"""Signing and reading one role's metadata.

Decides how long signatures live and how versions count. Which role is written when is decided in `repository`.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from securesystemslib.signer import Signer  # type: ignore[attr-defined]  # its documented face, not marked for export
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # its documented face, not marked for export
    Metadata,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from edgeml.errors import ConfigError, TrustError

Role = TypeVar("Role", Root, Snapshot, Targets, Timestamp)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long signatures count. A device that sees nothing newer in that time refuses to install."""

    targets: dt.timedelta = dt.timedelta(days=365)
    snapshot: dt.timedelta = dt.timedelta(days=30)
    timestamp: dt.timedelta = dt.timedelta(days=7)


def parsed(data: bytes, kind: type[Role], path: Path) -> Metadata[Role]:
    """Read metadata of one role; signatures are for the caller to check.

    Raises:
        TrustError: It is no metadata, or of another role.
    """
    try:
        metadata = Metadata[Role].from_bytes(data)
    except RepositoryError as error:
        raise TrustError(f"{path} is not valid metadata: {error}", hint="restore it from a backup") from error
    if not isinstance(metadata.signed, kind):
        raise TrustError(f"{path} is not {kind.type} metadata", hint="restore it from a backup")
    return metadata


def sign(signed: Role, signer: Signer, now_ms: int, life: dt.timedelta) -> bytes:
    """Give metadata the next version and a new expiry, and sign it."""
    signed.version += 1
    signed.expires = dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC).replace(microsecond=0) + life
    metadata = Metadata(signed)
    metadata.sign(signer)
    return metadata.to_bytes()


def is_old(signed: Role, life: dt.timedelta, now_ms: int) -> bool:
    """Tell whether less than half of a signature's life is left."""
    return signed.expires - dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC) < life / 2


def check_signer(root: Root, role: str, signer: Signer) -> None:
    """Refuse a key that the root does not name for a role.

    Raises:
        ConfigError: It does not.
    """
    if signer.public_key.keyid not in root.roles[role].keyids:
        raise ConfigError(
            f"this is not the repository's {role} key", hint="use the keys that the repository was made with"
        )
