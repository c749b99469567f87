"""What a device believes: attacks on signed metadata, and clocks that lie. Everything is really signed."""

from __future__ import annotations

import copy
import datetime as dt
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from edgeml.errors import (
    ConfigError,
    IncompatibleError,
    PermanentTransferError,
    StalledError,
    TransferError,
    TrustError,
)
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.trust import TrustStore
from edgeml.trustfacts import SignedFacts

DAY_MS = 86_400_000
NOW_MS = 1_790_000_000_000
PATH = "digits/1.0.0/int8.edgeml"
ROLES = ("root", "targets", "snapshot", "timestamp")


def facts(counter: int = 1) -> SignedFacts:
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
        self.put(PATH, b"bundle", facts())
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


def refreshed(directory: Path, source: Any, now_ms: int = NOW_MS) -> TrustStore:
    store = TrustStore(directory, source, now_ms=now_ms)
    store.refresh()
    return store


def test_signed_target_carries_its_facts(directory: Path, fleet: Fleet) -> None:
    target = refreshed(directory, fleet).target(PATH)
    assert (target.path, target.digest, target.length_bytes) == (PATH, digest_of(b"bundle"), 6)
    assert target.facts == facts()


def test_target_refreshes_by_itself_and_remembers_the_time(directory: Path, fleet: Fleet) -> None:
    TrustStore(directory, fleet, now_ms=NOW_MS).target(PATH)
    assert TrustStore(directory, fleet, now_ms=0).time.at_ms == NOW_MS


def test_target_is_found_by_its_digest_also_after_a_refresh(directory: Path, fleet: Fleet) -> None:
    store = refreshed(directory, fleet)
    assert store.target_with_digest(digest_of(b"bundle")).path == PATH
    with pytest.raises(TrustError, match="no signed release"):
        store.target_with_digest(digest_of(b"another"))


def test_store_may_be_refreshed_again_and_sees_what_was_published(directory: Path, fleet: Fleet) -> None:
    store = refreshed(directory, fleet)
    fleet.put("digits/1.1.0/int8.edgeml", b"newer", facts(2))
    fleet.publish()
    store.refresh()
    assert store.target("digits/1.1.0/int8.edgeml").facts.release_counter == 2


def test_unknown_target_is_refused(directory: Path, fleet: Fleet) -> None:
    with pytest.raises(TrustError, match="no signed release"):
        refreshed(directory, fleet).target("digits/9/none.edgeml")


@pytest.mark.parametrize("custom", [None, {"release": "x@1"}, {"unexpected": 1}])
def test_target_with_other_facts_is_of_another_format(directory: Path, fleet: Fleet, custom: Any) -> None:
    fleet.put("other", b"x", custom)
    fleet.publish()
    with pytest.raises(IncompatibleError):
        refreshed(directory, fleet).target("other")


def test_directory_without_root_says_what_to_do(tmp_path: Path, fleet: Fleet) -> None:
    with pytest.raises(ConfigError) as raised:
        TrustStore(tmp_path, fleet, now_ms=NOW_MS)
    assert raised.value.hint


@pytest.mark.parametrize("root", [b"", b"{}", b"not json", b"[" * 100_000])
def test_damaged_root_is_refused(tmp_path: Path, fleet: Fleet, root: bytes) -> None:
    (tmp_path / "root.json").write_bytes(root)
    with pytest.raises(TrustError):
        TrustStore(tmp_path, fleet, now_ms=NOW_MS)


def test_root_of_another_fleet_is_refused(tmp_path: Path, fleet: Fleet) -> None:
    (tmp_path / "root.json").write_bytes(Fleet().anchor)
    with pytest.raises(TrustError, match="refused"):
        refreshed(tmp_path, fleet)


def test_unchanged_repository_costs_one_small_file_and_the_question_for_a_newer_root(
    directory: Path, fleet: Fleet
) -> None:
    refreshed(directory, fleet)
    fleet.asked.clear()
    refreshed(directory, fleet)
    assert fleet.asked == ["2.root.json", "timestamp.json"]
    assert len(fleet.files["timestamp.json"]) < 1000


# Attacks


def test_older_timestamp_is_a_rollback_and_refused(directory: Path, fleet: Fleet) -> None:
    old = dict(fleet.files)
    fleet.publish()
    refreshed(directory, fleet)
    fleet.files = old
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


def test_older_targets_under_a_new_snapshot_are_a_rollback_and_refused(directory: Path, fleet: Fleet) -> None:
    fleet.publish()
    refreshed(directory, fleet)
    fleet.snapshot.meta["targets.json"] = MetaFile(fleet.targets.version - 1)
    fleet.publish_snapshot()
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


def test_snapshot_of_one_state_with_targets_of_another_is_refused(directory: Path, fleet: Fleet) -> None:
    older = fleet.files[f"{fleet.targets.version}.targets.json"]
    fleet.publish()
    fleet.files[f"{fleet.targets.version}.targets.json"] = older
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_changed_metadata_is_refused(directory: Path, fleet: Fleet, role: str) -> None:
    version = {"targets": fleet.targets.version, "snapshot": fleet.snapshot.version}.get(role)
    name = f"{version}.{role}.json" if version else f"{role}.json"
    content = json.loads(fleet.files[name])
    content["signed"]["expires"] = "2999-01-01T00:00:00Z"
    fleet.files[name] = json.dumps(content).encode()
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


def test_changed_target_digest_is_refused(directory: Path, fleet: Fleet) -> None:
    name = f"{fleet.targets.version}.targets.json"
    fleet.files[name] = fleet.files[name].replace(digest_of(b"bundle").encode(), digest_of(b"evil").encode())
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_role_signed_by_another_roles_key_is_refused(directory: Path, fleet: Fleet, role: str) -> None:
    other = {"targets": "timestamp", "snapshot": "targets", "timestamp": "snapshot"}[role]
    fleet.signers[role] = fleet.signers[other]
    fleet.publish()
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


@pytest.mark.parametrize(
    "content", [b"", b"<html>log in to this network</html>", b"[" * 10_000, b'{"signed": {}}', b"\xff\xfe"]
)
def test_garbage_instead_of_metadata_is_refused(directory: Path, fleet: Fleet, content: bytes) -> None:
    fleet.files["timestamp.json"] = content
    with pytest.raises(TrustError):
        refreshed(directory, fleet)


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json"])
def test_endless_metadata_is_cut_off_at_a_limit(directory: Path, fleet: Fleet, name: str) -> None:
    pieces = []

    class Endless:
        def metadata(self, asked: str) -> Iterator[bytes]:
            if asked != name:
                yield from fleet.metadata(asked)
                return
            while len(pieces) < 10_000:
                pieces.append(1)
                yield b" " * 4096

    with pytest.raises((TrustError, TransferError)):
        refreshed(directory, Endless())
    assert len(pieces) * 4096 < 1 << 20


def test_refused_metadata_leaves_the_trusted_one_in_use(directory: Path, fleet: Fleet) -> None:
    refreshed(directory, fleet)
    good = dict(fleet.files)
    fleet.files["timestamp.json"] = b"{}"
    with pytest.raises(TrustError):
        refreshed(directory, fleet)
    fleet.files = good
    assert refreshed(directory, fleet).target(PATH).facts == facts()


# Transport


@pytest.mark.parametrize("error", [TransferError("cut"), StalledError("silent")])
def test_cut_while_reading_metadata_is_worth_another_try(
    directory: Path, fleet: Fleet, error: TransferError
) -> None:
    class Cut:
        def metadata(self, asked: str) -> Iterator[bytes]:
            if asked == "timestamp.json":
                yield b"{"
                raise error
            yield from fleet.metadata(asked)

    with pytest.raises(TransferError) as raised:
        refreshed(directory, Cut())
    assert not isinstance(raised.value, PermanentTransferError)


def test_missing_timestamp_is_permanent(directory: Path, fleet: Fleet) -> None:
    del fleet.files["timestamp.json"]
    with pytest.raises(PermanentTransferError):
        refreshed(directory, fleet)


# Root rotation


def test_device_that_missed_two_root_rotations_follows_them(directory: Path, fleet: Fleet) -> None:
    refreshed(directory, fleet)
    fleet.rotate("root")
    fleet.rotate("timestamp")
    fleet.publish()
    assert refreshed(directory, fleet).target(PATH).facts == facts()
    assert refreshed(directory, fleet, NOW_MS + 1000).target(PATH)


def test_missing_link_in_the_chain_of_roots_is_refused(directory: Path, fleet: Fleet) -> None:
    fleet.rotate("root")
    fleet.rotate("timestamp")
    fleet.publish()
    del fleet.files["2.root.json"]
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


def test_root_not_signed_by_the_old_root_key_is_refused(directory: Path, fleet: Fleet) -> None:
    fleet.root.version += 1
    fleet.publish_root([CryptoSigner.generate_ed25519()])
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


def test_metadata_signed_by_a_revoked_key_is_refused(directory: Path, fleet: Fleet) -> None:
    revoked = fleet.signers["timestamp"]
    fleet.rotate("timestamp")
    fleet.signers["timestamp"] = revoked
    fleet.publish()
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


# Time


def test_given_time_decides_about_expiry_and_not_the_machines_clock(directory: Path, fleet: Fleet) -> None:
    """Fails when setting `_trusted_set.reference_time` stops working: the machine's clock is near neither of these."""
    for now_ms, expired in [(NOW_MS + 6 * DAY_MS, False), (NOW_MS + 8 * DAY_MS, True)]:
        store = TrustStore(directory, fleet, now_ms=now_ms)
        assert store._updater._trusted_set.reference_time == dt.datetime.fromtimestamp(now_ms / 1000, dt.UTC)
        if expired:
            with pytest.raises(TrustError, match="expired"):
                store.refresh()
        else:
            store.refresh()


def test_reference_time_is_what_tuf_judges_expiry_by(tmp_path: Path) -> None:
    past, future = Fleet(NOW_MS - 3000 * DAY_MS), Fleet(NOW_MS + 3000 * DAY_MS)
    for number, (fleet, now_ms) in enumerate([(past, past.now_ms), (future, future.now_ms + 8 * DAY_MS)]):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "root.json").write_bytes(fleet.anchor)
        store = TrustStore(directory, fleet, now_ms=now_ms)
        if fleet is past:
            store.refresh()  # expired for eight years by the machine's clock
        else:
            with pytest.raises(TrustError, match="expired"):
                store.refresh()  # fresh for eight years by the machine's clock


def test_frozen_repository_is_refused_once_its_timestamp_expired(directory: Path, fleet: Fleet) -> None:
    refreshed(directory, fleet, NOW_MS)
    with pytest.raises(TrustError, match="expired") as raised:
        refreshed(directory, fleet, NOW_MS + 7 * DAY_MS + 1000)
    assert "clock" in raised.value.hint


def test_clock_in_1970_never_revives_what_had_expired(directory: Path, fleet: Fleet) -> None:
    old = dict(fleet.files)
    fleet.now_ms = NOW_MS + 20 * DAY_MS
    fleet.publish()
    refreshed(directory, fleet, fleet.now_ms)
    fresh = tuple(directory.glob("metadata/*.json"))
    for path in fresh:
        path.unlink()  # a device that lost its cache, not its floor
    fleet.files = old
    store = TrustStore(directory, fleet, now_ms=5000)
    assert store.time.at_ms == fleet.now_ms
    assert not store.time.clock_trusted
    with pytest.raises(TrustError, match="expired"):
        store.refresh()


def test_clock_in_1970_on_a_new_device_installs_and_says_that_the_clock_is_wrong(
    directory: Path, fleet: Fleet
) -> None:
    store = refreshed(directory, fleet, 5000)
    assert store.target(PATH)
    assert not store.time.clock_trusted


def test_clock_that_jumps_back_uses_the_floor(directory: Path, fleet: Fleet) -> None:
    assert refreshed(directory, fleet, NOW_MS + 3 * DAY_MS).time.clock_trusted
    store = refreshed(directory, fleet, NOW_MS - 400 * DAY_MS)
    assert store.time.at_ms == NOW_MS + 3 * DAY_MS
    assert not store.time.clock_trusted


def test_clock_years_ahead_refuses_and_does_not_poison_the_floor(directory: Path, fleet: Fleet) -> None:
    refreshed(directory, fleet, NOW_MS)
    with pytest.raises(TrustError, match="expired"):
        refreshed(directory, fleet, NOW_MS + 9 * 365 * DAY_MS)
    store = refreshed(directory, fleet, NOW_MS + 1000)
    assert store.time.clock_trusted
    assert store.target(PATH)


@pytest.mark.parametrize("now_ms", [1 << 45, 1 << 62, 10**30])
def test_clock_of_another_age_is_ignored(directory: Path, fleet: Fleet, now_ms: int) -> None:
    refreshed(directory, fleet, NOW_MS)
    store = refreshed(directory, fleet, now_ms)
    assert store.time.at_ms == NOW_MS
    assert not store.time.clock_trusted


@pytest.mark.parametrize("content", ["", "x", "-5", "9" * 30, "9" * 5000, "1.5", "\x00"])
def test_damaged_floor_is_ignored(directory: Path, fleet: Fleet, content: str) -> None:
    (directory / "time-floor").write_text(content)
    assert refreshed(directory, fleet).time == TrustStore(directory, fleet, now_ms=NOW_MS).time
