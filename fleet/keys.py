"""The keys that a fleet signs with, and the root of trust that devices are given.

Decides which roles have a key, where each lies, and that a key file is never overwritten. `offline/` (root, targets)
belongs on a medium that is plugged in to publish; `online/` (snapshot, timestamp) stays with the controller, which
renews the date of the metadata. What is signed is `repository`'s business.
"""

from __future__ import annotations

import datetime as dt
import errno
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # its documented face, not marked for export
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]  # its documented face, not marked for export

from edgeml import atomic
from edgeml.errors import ConfigError

ROOT: Final = "root"
TARGETS: Final = "targets"
SNAPSHOT: Final = "snapshot"
TIMESTAMP: Final = "timestamp"
PLACES: Final = {ROOT: "offline", TARGETS: "offline", SNAPSHOT: "online", TIMESTAMP: "online"}
"""Folder of each role's key."""
ANCHOR: Final = "root.json"
ROOT_LIFE: Final = dt.timedelta(days=3653)
_KEY_BYTES_MAX: Final = 64 << 10


@dataclass(frozen=True, slots=True)
class KeyRing:
    """All four keys, and the first root metadata."""

    root: CryptoSigner = field(repr=False)
    targets: CryptoSigner = field(repr=False)
    snapshot: CryptoSigner = field(repr=False)
    timestamp: CryptoSigner = field(repr=False)
    anchor: bytes = field(repr=False)
    """`root.json`: what devices are given."""


def key_path(directory: Path, role: str) -> Path:
    """Where a role's key lies: `offline/root.pem`, `offline/targets.pem`, `online/snapshot.pem`, `online/timestamp.pem`."""
    return directory / PLACES[role] / f"{role}.pem"


def create_keys(directory: Path, passphrase: bytes | None = None) -> KeyRing:
    """Make ed25519 keys for every role and sign the first root metadata, valid for ten years: all of it, or nothing.

    Args:
        directory: gets `offline/*.pem`, `online/*.pem` (mode 0600, folders 0700) and `root.json`.
        passphrase: encrypts the offline keys; the controller must use the online ones alone.

    Raises:
        ConfigError: There are keys or other files already; they stay as they are.
        StorageError: The disk refused.
    """
    paths = [*(key_path(directory, role) for role in PLACES), directory / ANCHOR]
    present = [path for path in paths if path.exists()]
    if present:
        raise ConfigError(
            f"{directory} already holds {present[0].relative_to(directory)}; keys are never overwritten",
            hint="nothing is to be done if these are the fleet's keys; else name another directory",
        )
    private = {role: Ed25519PrivateKey.generate() for role in PLACES}
    signers = {role: CryptoSigner(key) for role, key in private.items()}
    anchor = _sign_root(signers)
    pems = {role: _pem(private[role], passphrase if PLACES[role] == "offline" else None) for role in PLACES}
    _write_together(directory, pems, anchor)
    return KeyRing(signers[ROOT], signers[TARGETS], signers[SNAPSHOT], signers[TIMESTAMP], anchor)


def load_keys(directory: Path, passphrase: bytes | None = None) -> KeyRing:
    """Load what `create_keys` made.

    Raises:
        ConfigError: A key or `root.json` is missing or cannot be used.
    """
    signers = {
        role: load_signer(key_path(directory, role), passphrase if place == "offline" else None)
        for role, place in PLACES.items()
    }
    anchor = _read(directory / ANCHOR, "the root metadata")
    return KeyRing(signers[ROOT], signers[TARGETS], signers[SNAPSHOT], signers[TIMESTAMP], anchor)


def load_signer(path: Path, passphrase: bytes | None = None) -> CryptoSigner:
    """Load one private key.

    Raises:
        ConfigError: It is missing, no ed25519 key in PEM, or encrypted with another passphrase.
    """
    data = _read(path, "the key")
    encrypted = b"ENCRYPTED PRIVATE KEY" in data
    if encrypted and passphrase is None:
        raise ConfigError(f"key {path} is encrypted", hint="give its passphrase with --passphrase-file")
    try:
        key = load_pem_private_key(data, passphrase if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        why = (
            "the passphrase is another one, or the file is damaged"
            if encrypted
            else "it is no private key in PEM"
        )
        raise ConfigError(
            f"cannot use key {path}: {why}", hint="check which file it is, or restore it from a backup"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"key {path} is no ed25519 key", hint="make keys with `edgeml keys init`")
    return CryptoSigner(key)


def _sign_root(signers: dict[str, CryptoSigner]) -> bytes:
    root = Root(version=1, consistent_snapshot=True)
    root.expires = dt.datetime.now(dt.UTC).replace(microsecond=0) + ROOT_LIFE
    for role, signer in signers.items():
        root.add_key(signer.public_key, role)
    metadata = Metadata(root)
    metadata.sign(signers[ROOT])
    return metadata.to_bytes()


def _pem(key: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def _write_together(directory: Path, pems: dict[str, bytes], anchor: bytes) -> None:
    """Write everything beside `directory`, then let it take that name: half a set of keys is of no use to anybody."""
    unfinished: Path | None = None
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        for role, pem in pems.items():
            path = key_path(unfinished, role)
            path.parent.mkdir(exist_ok=True)
            path.parent.chmod(0o700)
            _write_new(path, pem)
        atomic.write_bytes(unfinished / ANCHOR, anchor, mode=0o644)
        unfinished.rename(directory)
        unfinished = None
        atomic.sync_directory(directory.parent)
    except OSError as error:
        if error.errno == errno.ENOTEMPTY:
            raise ConfigError(
                f"{directory} holds other files", hint="name a directory that is empty or does not exist"
            ) from error
        raise atomic.storage_error(error, directory) from error
    finally:
        if unfinished is not None:
            shutil.rmtree(unfinished, ignore_errors=True)


def _write_new(path: Path, data: bytes) -> None:
    """Write a file that must not exist; readable by its owner only from the start."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    atomic.sync_directory(path.parent)


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_KEY_BYTES_MAX)
    except FileNotFoundError as error:
        raise ConfigError(
            f"{what} {path} does not exist",
            hint="plug in the medium it is on, or make keys with `edgeml keys init`",
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read {what} {path}: {error.strerror}", hint="check its owner and mode"
        ) from error
