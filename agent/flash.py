"""Offline delivery: puts a signed release on a device's storage, without any network.

Decides the inbox: `inbox/NAME/` holds `desired.json` and a small repository (metadata and blobs) that the device reads
with the same code that it uses online. What is put there is trusted no more than what a server sends: the device
checks signatures, digest, profile and release counter itself.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgeml import atomic, twin
from edgeml.errors import ConfigError, IncompatibleError, ManifestError
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
    inbox: Path
    root_installed: bool
    """True if the storage had no trust anchor and was given the repository's."""


def flash(bundle: Path, storage: Path, repository: Path, now_ms: int) -> Flashed:
    """Put a signed bundle into a device's storage.

    Args:
        bundle: the .edgeml file.
        storage: the device's storage directory (`storage` in its agent.toml), for example on a mounted card.
        repository: the fleet's repository with the signed metadata.
        now_ms: wall time, for expiry.

    Raises:
        ConfigError: A path is missing, or the storage belongs to no device.
        TrustError: The bundle is not a signed release, or its metadata has expired.
        IncompatibleError: The storage trusts another fleet.
        StorageError: The disk refused; nothing half-written is left.
    """
    from edgeml.source import DirectorySource
    from edgeml.trust import TrustStore

    if not bundle.is_file():
        raise ConfigError(f"no bundle at {bundle}", hint="edgeml convert and edgeml package write bundles")
    anchor = _anchor(repository)
    trust = storage / TRUST
    try:
        root_installed = not (trust / ROOT).exists()
        if root_installed:
            atomic.write_bytes(trust / ROOT, anchor)
        elif (trust / ROOT).read_bytes() != anchor:
            raise IncompatibleError(
                f"{storage} trusts another fleet", hint="use that fleet's repository, or an empty directory"
            )
        store = TrustStore(trust, DirectorySource(repository), now_ms=now_ms)
        target = store.target_with_digest(digest_of_file(bundle))
        inbox = storage / INBOX / target.digest[:16]
        blobs = inbox / "repository" / "blobs" / "sha256"
        blobs.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(blobs / target.digest) as temporary:
            shutil.copyfile(bundle, temporary)
        chunks = target.facts.chunks_sha256
        with atomic.replacing(blobs / chunks) as temporary:
            shutil.copyfile(repository / "blobs" / "sha256" / chunks, temporary)
        # What waits there already is told too: the device would refuse metadata older than those that it has seen.
        for waiting_inbox in {inbox, *(path.parent for path in (storage / INBOX).glob(f"*/{DESIRED}"))}:
            _copy_metadata(repository, waiting_inbox / "repository")
        desired = Desired(
            generation=0, deployment=DeploymentId(f"flash-{target.digest[:16]}"), release=target.facts.release,
            target=target.path, digest=target.digest,
        )  # fmt: skip
        # Last: a device that finds this file finds everything else.
        atomic.write_bytes(inbox / DESIRED, twin.encode(desired))
    except OSError as error:
        raise atomic.storage_error(error, storage) from error
    return Flashed(target, inbox, root_installed)


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


def waiting(storage: Path) -> Iterator[Offline]:
    """Yield the deployments in the inbox.

    Raises:
        ManifestError: One is not readable; it is named.
    """
    inbox = storage / INBOX
    for path in sorted(inbox.glob(f"*/{DESIRED}")) if inbox.exists() else ():
        try:
            desired = twin.decode(path.read_bytes(), Desired)
            yield Offline(model_of(desired.release), desired, path.parent)
        except (OSError, ManifestError, ConfigError) as error:
            raise ManifestError(
                f"{path} cannot be read: {error}", hint="remove it and flash again"
            ) from error


def clear(offline: Offline) -> None:
    """Remove a deployment from the inbox once it has ended, well or badly."""
    (offline.directory / DESIRED).unlink(missing_ok=True)
    shutil.rmtree(offline.directory, ignore_errors=True)


def _copy_metadata(repository: Path, to: Path) -> None:
    # By name, so that the timestamp, which names all others, comes last.
    for path in sorted((repository / "metadata").glob("*.json")):
        atomic.write_bytes(to / "metadata" / path.name, path.read_bytes())


def _anchor(repository: Path) -> bytes:
    try:
        return (repository / "metadata" / "1.root.json").read_bytes()
    except OSError as error:
        raise ConfigError(
            f"no signed metadata in {repository}: {error.strerror}",
            hint="publish the bundle first: edgeml fleet publish",
        ) from error


def as_json(flashed: Flashed) -> bytes:
    """What was done, for machines."""
    return msgspec.json.encode(
        {"release": flashed.target.facts.release, "target": flashed.target.path, "digest": flashed.target.digest,
         "inbox": str(flashed.inbox), "root_installed": flashed.root_installed}
    )  # fmt: skip
