"""A fleet that signs, in memory, and a device's directory."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edgeml.errors import (
    PermanentTransferError,
)
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.trust import TrustStore
from edgeml.trustfacts import SignedFacts

DAY_MS = 86_400_000
NOW_MS = 1_790_000_000_000
PATH = "digits/1.0.0/int8.edgeml"
ROLES = ("root", "targets", "snapshot", "timestamp")


def signed_facts(counter: int = 1) -> SignedFacts:
    return SignedFacts(
        "digits@1.0.0", "int8", counter, ("generic",), RuntimeFamily.ONNX, 262144, digest_of(b"chunks")
    )


class Fleet:
    """Signs metadata and serves it, as a `Source`."""

    def __init__(self, now_ms: int = NOW_MS) -> None:
        self.now_ms = now_ms
        self.signers = {role: CryptoSigner.generate_ed25519() for role in ROLES}
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.root = Root(consistent_snapshot=True)
        for role, signer in self.signers.items():
            self.root.add_key(signer.public_key, role)
        self.targets, self.snapshot, self.timestamp = Targets(), Snapshot(), Timestamp()
        self.publish_root([self.signers["root"]])
        self.anchor = self.files["1.root.json"]
        self.put(PATH, b"bundle", signed_facts())
        self.publish()

    def _bytes(self, signed: Any, signers: list[CryptoSigner], days: int) -> bytes:
        signed.expires = dt.datetime.fromtimestamp(self.now_ms / 1000, dt.UTC).replace(
            microsecond=0
        ) + dt.timedelta(days=days)
        metadata = Metadata(signed)
        for signer in signers:
            metadata.sign(signer, append=True)
        return metadata.to_bytes()

    def publish_root(self, signers: list[CryptoSigner]) -> None:
        self.files[f"{self.root.version}.root.json"] = self._bytes(self.root, signers, 3650)

    def rotate(self, role: str) -> None:
        """Replace a role's key by a new one; the root is signed by its old and its new keys."""
        old_root = self.signers["root"]
        self.root.revoke_key(self.signers[role].public_key.keyid, role)
        self.signers[role] = CryptoSigner.generate_ed25519()
        self.root.add_key(self.signers[role].public_key, role)
        self.root.version += 1
        self.publish_root([old_root] if role != "root" else [old_root, self.signers["root"]])

    def put(self, path: str, data: bytes, custom: Any) -> None:
        extra = {} if custom is None else {"custom": msgspec.to_builtins(custom)}
        self.targets.targets[path] = TargetFile(len(data), {"sha256": digest_of(data)}, path, extra)

    def publish(self) -> None:
        self.targets.version += 1
        data = self._bytes(self.targets, [self.signers["targets"]], 365)
        self.files[f"{self.targets.version}.targets.json"] = data
        self.snapshot.meta["targets.json"] = MetaFile(self.targets.version)
        self.publish_snapshot()

    def publish_snapshot(self) -> None:
        self.snapshot.version += 1
        data = self._bytes(self.snapshot, [self.signers["snapshot"]], 30)
        self.files[f"{self.snapshot.version}.snapshot.json"] = data
        self.timestamp.snapshot_meta = MetaFile(self.snapshot.version)
        self.publish_timestamp()

    def publish_timestamp(self) -> None:
        self.timestamp.version += 1
        self.files["timestamp.json"] = self._bytes(self.timestamp, [self.signers["timestamp"]], 7)

    def metadata(self, name: str) -> Iterator[bytes]:
        self.asked.append(name)
        if name not in self.files:
            raise PermanentTransferError(f"no {name}")
        yield self.files[name]

    def blob(self, digest: str, offset: int) -> Any:
        raise AssertionError("trust reads no blobs")


@pytest.fixture(scope="module")
def signed_once() -> Fleet:
    return Fleet()


@pytest.fixture
def fleet(signed_once: Fleet) -> Fleet:
    return copy.deepcopy(signed_once)


@pytest.fixture
def directory(tmp_path: Path, fleet: Fleet) -> Path:
    (tmp_path / "root.json").write_bytes(fleet.anchor)
    return tmp_path


@pytest.fixture
def new_fleet():
    return Fleet


@pytest.fixture
def facts():
    return signed_facts


@pytest.fixture
def refreshed():
    def refresh(directory: Path, source: Any, now_ms: int = NOW_MS) -> TrustStore:
        store = TrustStore(directory, source, now_ms=now_ms)
        store.refresh()
        return store

    return refresh
