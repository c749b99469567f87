"""Tokens: what devices, the operator and the controller show to be let in.

Decides how long they are, as what the fleet remembers a device's (a hash alone), and that the operator's and the
controller's are made at first use, in files of their owner. Who may do what with one is `api`'s and the broker's business.
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import Final

from edgeml import atomic

from .config import FleetHome

TOKEN_BYTES: Final = 32
NO_TOKEN: Final = "-"  # noqa: S105  # no secret: nothing hashes to it
"""In the place of a token's hashes: the device logs in by its certificate alone."""


def new_token() -> str:
    """Make a token: 256 random bits, as URL-safe base64."""
    return secrets.token_urlsafe(TOKEN_BYTES)


def token_hash(token: str) -> str:
    """SHA-256 of a token in hex: enough, because tokens are random 256-bit numbers."""
    return hashlib.sha256(token.encode()).hexdigest()


def operator_token(home: FleetHome) -> str:
    """Return the operator's token, made at first use.

    Raises:
        StorageError: The disk refused.
    """
    return _kept(home.operator_token)


def controller_token(home: FleetHome) -> str:
    """Return the controller's own token, made at first use.

    Raises:
        StorageError: The disk refused.
    """
    return _kept(home.broker / "controller.token")


def _kept(path: Path) -> str:
    if not path.exists():
        atomic.write_bytes(path, new_token().encode())
    try:
        return path.read_text().strip()
    except OSError as error:
        raise atomic.storage_error(error, path) from error
