"""Offline delivery: puts a signed release on a device's storage, without any network.

Decides the inbox: `inbox/NAME/` holds `desired.json` and a small repository (metadata and blobs) that the device reads
with the same code that it uses online. What is put there is trusted no more than what a server sends: the device
checks signatures, digest, profile and release counter itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from edgeml import atomic, twin
from edgeml.errors import ConfigError, ManifestError
from edgeml.ids import DeploymentId, ModelName, digest_of_file, model_of
from edgeml.trustfacts import SignedTarget
from edgeml.twin import Desired

INBOX: Final = "inbox"
DESIRED: Final = "desired.json"
TRUST: Final = "trust"
ROOT: Final = "root.json"


@dataclass(frozen=True, slots=True)
class Flashed:
    """What was put where."""

    target: SignedTarget
    inbox: str
    root_installed: bool
    """True if the storage had no trust anchor and was given one."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """What goes into the inbox, checked against the fleet's signatures.

    `files` are in the order in which they may lie there: `DESIRED` is the last, and a device that finds it finds
    everything else. The timestamp, which names all other metadata, is the last of those.
    """

    target: SignedTarget
    name: str
    anchor: bytes
    files: tuple[tuple[PurePosixPath, Path | bytes], ...]


def pack(bundle: Path, repository: Path, trust: Path, now_ms: int) -> Parcel:
    """Put together what a device needs to install a bundle without a network.

    Args:
        bundle: the .edgeml file.
        repository: the fleet's repository with the signed metadata.
        trust: directory with the trust anchor to check against, which `edgeml.roots` has chosen; what is learned is kept there.
        now_ms: wall time, for expiry.

    Raises:
        ConfigError: A path is missing.
        TrustError: The bundle is not a signed release, or its metadata has expired.
        StorageError: The disk refused.
    """
    from edgeml.source import DirectorySource
    from edgeml.trust import TrustStore

    if not bundle.is_file():
        raise ConfigError(f"no bundle at {bundle}", hint="edgeml convert and edgeml package write bundles")
    try:
        anchor = (trust / ROOT).read_bytes()
    except OSError as error:
        raise atomic.storage_error(error, trust) from error
    target = TrustStore(trust, DirectorySource(repository), now_ms=now_ms).target_with_digest(
        digest_of_file(bundle)
    )
    blobs = PurePosixPath("repository/blobs/sha256")
    chunks = target.facts.chunks_sha256
    metadata = sorted((repository / "metadata").glob("*.json"))
    desired = Desired(
        generation=0, deployment=DeploymentId(f"flash-{target.digest[:16]}-{now_ms}"), release=target.facts.release,
        target=target.path, digest=target.digest,
    )  # fmt: skip
    return Parcel(
        target,
        target.digest[:16],
        anchor,
        (
            (blobs / target.digest, bundle),
            (blobs / chunks, repository / "blobs" / "sha256" / chunks),
            *((PurePosixPath("repository/metadata") / path.name, path.read_bytes()) for path in metadata),
            (PurePosixPath(DESIRED), twin.encode(desired)),
        ),
    )


def flash(bundle: Path, storage: Path, repository: Path, now_ms: int, anchor: bytes | None = None) -> Flashed:
    """Put a signed bundle into a device's storage.

    Args:
        bundle: the .edgeml file.
        storage: the device's storage directory (`storage` in its agent.toml), for example on a mounted card.
        repository: the fleet's repository with the signed metadata.
        now_ms: wall time, for expiry.
        anchor: root metadata that the device is to trust if it has none yet; None for the repository's newest.

    Raises:
        ConfigError: A path is missing.
        TrustError: The bundle is not a signed release, or its metadata has expired.
        IncompatibleError: The storage trusts another fleet.
        StorageError: The disk refused; nothing half-written is left.
    """
    from edgeml.roots import read_roots

    trust = storage / TRUST
    try:
        known = (trust / ROOT).read_bytes() if (trust / ROOT).exists() else None
        chosen = read_roots(repository).choose(known, anchor, str(storage))
        if known is None:
            atomic.write_bytes(trust / ROOT, chosen)
        parcel = pack(bundle, repository, trust, now_ms)
        inbox = storage / INBOX / parcel.name
        for relative, content in parcel.files:
            if relative.name == DESIRED:
                share_metadata(storage, parcel.name)
            _put(inbox / relative, content)
    except OSError as error:
        raise atomic.storage_error(error, storage) from error
    return Flashed(parcel.target, str(inbox), root_installed=known is None)


@dataclass(frozen=True, slots=True)
class Offline:
    """A deployment that waits in the inbox."""

    model: ModelName
    desired: Desired
    directory: Path

    @property
    def repository(self) -> str:
        """Where its metadata and blobs are."""
        return str(self.directory / "repository")


def waiting(storage: Path) -> Iterator[Offline | ManifestError]:
    """Yield the deployments in the inbox; for one that is not readable an error that names it."""
    inbox = storage / INBOX
    for path in sorted(inbox.glob(f"*/{DESIRED}")) if inbox.exists() else ():
        try:
            desired = twin.decode(path.read_bytes(), Desired)
            yield Offline(model_of(desired.release), desired, path.parent)
        except (OSError, ManifestError, ConfigError) as error:
            yield ManifestError(f"{path} cannot be read: {error}", hint="remove it and flash again")


def unfinished(storage: Path) -> Iterator[tuple[Path, int]]:
    """Yield directories of the inbox that lack what a device looks for, and when they were last written to, in ns."""
    inbox = storage / INBOX
    for directory in sorted(inbox.iterdir()) if inbox.exists() else ():
        if directory.is_dir() and not (directory / DESIRED).exists():
            with suppress(FileNotFoundError):
                times = [path.stat().st_mtime_ns for path in (directory, *directory.rglob("*"))]
                yield directory, max(times)


def clear(offline: Offline) -> None:
    """Remove a deployment from the inbox once it has ended, well or badly."""
    (offline.directory / DESIRED).unlink(missing_ok=True)
    # What a kill leaves of it is unfinished, and cleared away later.
    shutil.rmtree(offline.directory, ignore_errors=True)


def share_metadata(storage: Path, name: str) -> None:
    """Give a parcel's metadata to those that wait already: a device refuses metadata older than what it has seen.

    Raises:
        StorageError: The disk refused.
    """
    fresh = sorted((storage / INBOX / name / "repository" / "metadata").glob("*.json"))
    for other in (storage / INBOX).glob(f"*/{DESIRED}"):
        if other.parent.name != name:
            for path in fresh:
                _put(other.parent / "repository" / "metadata" / path.name, path.read_bytes())


def _put(path: Path, content: Path | bytes) -> None:
    if isinstance(content, bytes):
        atomic.write_bytes(path, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary:
        shutil.copyfile(content, temporary)


def as_json(flashed: Flashed) -> bytes:
    """What was done, for machines."""
    return msgspec.json.encode(
        {"release": flashed.target.facts.release, "target": flashed.target.path, "digest": flashed.target.digest,
         "inbox": flashed.inbox, "root_installed": flashed.root_installed}
    )  # fmt: skip
