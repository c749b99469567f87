"""What a device believes: attacks on signed metadata, and rotated roots. Everything is really signed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile

from edgeml.errors import (
    ConfigError,
    IncompatibleError,
    PermanentTransferError,
    StalledError,
    TransferError,
    TrustError,
)
from edgeml.ids import digest_of
from edgeml.trust import TrustStore

DAY_MS = 86_400_000
NOW_MS = 1_790_000_000_000
PATH = "digits/1.0.0/int8.edgeml"


def test_signed_target_carries_its_facts(facts, refreshed, directory: Path, fleet: Any) -> None:
    target = refreshed(directory, fleet).target(PATH)
    assert (target.path, target.digest, target.length_bytes) == (PATH, digest_of(b"bundle"), 6)
    assert target.facts == facts()


def test_target_refreshes_by_itself_and_remembers_the_time(directory: Path, fleet: Any) -> None:
    TrustStore(directory, fleet, now_ms=NOW_MS).target(PATH)
    assert TrustStore(directory, fleet, now_ms=0).time.at_ms == NOW_MS


def test_target_is_found_by_its_digest_also_after_a_refresh(refreshed, directory: Path, fleet: Any) -> None:
    store = refreshed(directory, fleet)
    assert store.target_with_digest(digest_of(b"bundle")).path == PATH
    with pytest.raises(TrustError, match="no signed release"):
        store.target_with_digest(digest_of(b"another"))


def test_store_may_be_refreshed_again_and_sees_what_was_published(
    facts, refreshed, directory: Path, fleet: Any
) -> None:
    store = refreshed(directory, fleet)
    fleet.put("digits/1.1.0/int8.edgeml", b"newer", facts(2))
    fleet.publish()
    store.refresh()
    assert store.target("digits/1.1.0/int8.edgeml").facts.release_counter == 2


def test_unknown_target_is_refused(refreshed, directory: Path, fleet: Any) -> None:
    with pytest.raises(TrustError, match="no signed release"):
        refreshed(directory, fleet).target("digits/9/none.edgeml")


@pytest.mark.parametrize("custom", [None, {"release": "x@1"}, {"unexpected": 1}])
def test_target_with_other_facts_is_of_another_format(
    refreshed, directory: Path, fleet: Any, custom: Any
) -> None:
    fleet.put("other", b"x", custom)
    fleet.publish()
    with pytest.raises(IncompatibleError):
        refreshed(directory, fleet).target("other")


def test_directory_without_root_says_what_to_do(tmp_path: Path, fleet: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        TrustStore(tmp_path, fleet, now_ms=NOW_MS)
    assert raised.value.hint


@pytest.mark.parametrize("root", [b"", b"{}", b"not json", b"[" * 100_000])
def test_damaged_root_is_refused(tmp_path: Path, fleet: Any, root: bytes) -> None:
    (tmp_path / "root.json").write_bytes(root)
    with pytest.raises(TrustError):
        TrustStore(tmp_path, fleet, now_ms=NOW_MS)


def test_root_of_another_fleet_is_refused(new_fleet, refreshed, tmp_path: Path, fleet: Any) -> None:
    (tmp_path / "root.json").write_bytes(new_fleet().anchor)
    with pytest.raises(TrustError, match="refused"):
        refreshed(tmp_path, fleet)


def test_unchanged_repository_costs_one_small_file_and_the_question_for_a_newer_root(
    refreshed, directory: Path, fleet: Any
) -> None:
    refreshed(directory, fleet)
    fleet.asked.clear()
    refreshed(directory, fleet)
    assert fleet.asked == ["2.root.json", "timestamp.json"]
    assert len(fleet.files["timestamp.json"]) < 1000


# Attacks


def test_older_timestamp_is_a_rollback_and_refused(refreshed, directory: Path, fleet: Any) -> None:
    old = dict(fleet.files)
    fleet.publish()
    refreshed(directory, fleet)
    fleet.files = old
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


def test_older_targets_under_a_new_snapshot_are_a_rollback_and_refused(
    refreshed, directory: Path, fleet: Any
) -> None:
    fleet.publish()
    refreshed(directory, fleet)
    fleet.snapshot.meta["targets.json"] = MetaFile(fleet.targets.version - 1)
    fleet.publish_snapshot()
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


def test_snapshot_of_one_state_with_targets_of_another_is_refused(
    refreshed, directory: Path, fleet: Any
) -> None:
    older = fleet.files[f"{fleet.targets.version}.targets.json"]
    fleet.publish()
    fleet.files[f"{fleet.targets.version}.targets.json"] = older
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_changed_metadata_is_refused(refreshed, directory: Path, fleet: Any, role: str) -> None:
    version = {"targets": fleet.targets.version, "snapshot": fleet.snapshot.version}.get(role)
    name = f"{version}.{role}.json" if version else f"{role}.json"
    content = json.loads(fleet.files[name])
    content["signed"]["expires"] = "2999-01-01T00:00:00Z"
    fleet.files[name] = json.dumps(content).encode()
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


def test_changed_target_digest_is_refused(refreshed, directory: Path, fleet: Any) -> None:
    name = f"{fleet.targets.version}.targets.json"
    fleet.files[name] = fleet.files[name].replace(digest_of(b"bundle").encode(), digest_of(b"evil").encode())
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_role_signed_by_another_roles_key_is_refused(
    refreshed, directory: Path, fleet: Any, role: str
) -> None:
    other = {"targets": "timestamp", "snapshot": "targets", "timestamp": "snapshot"}[role]
    fleet.signers[role] = fleet.signers[other]
    fleet.publish()
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


@pytest.mark.parametrize(
    "content", [b"", b"<html>log in to this network</html>", b"[" * 10_000, b'{"signed": {}}', b"\xff\xfe"]
)
def test_garbage_instead_of_metadata_is_refused(
    refreshed, directory: Path, fleet: Any, content: bytes
) -> None:
    fleet.files["timestamp.json"] = content
    with pytest.raises(TrustError):
        refreshed(directory, fleet)


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json"])
def test_endless_metadata_is_cut_off_at_a_limit(refreshed, directory: Path, fleet: Any, name: str) -> None:
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


def test_refused_metadata_leaves_the_trusted_one_in_use(
    facts, refreshed, directory: Path, fleet: Any
) -> None:
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
    refreshed, directory: Path, fleet: Any, error: TransferError
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


def test_missing_timestamp_is_permanent(refreshed, directory: Path, fleet: Any) -> None:
    del fleet.files["timestamp.json"]
    with pytest.raises(PermanentTransferError):
        refreshed(directory, fleet)


# Root rotation


def test_device_that_missed_two_root_rotations_follows_them(
    facts, refreshed, directory: Path, fleet: Any
) -> None:
    refreshed(directory, fleet)
    fleet.rotate("root")
    fleet.rotate("timestamp")
    fleet.publish()
    assert refreshed(directory, fleet).target(PATH).facts == facts()
    assert refreshed(directory, fleet, NOW_MS + 1000).target(PATH)


def test_missing_link_in_the_chain_of_roots_is_refused(refreshed, directory: Path, fleet: Any) -> None:
    fleet.rotate("root")
    fleet.rotate("timestamp")
    fleet.publish()
    del fleet.files["2.root.json"]
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


def test_root_not_signed_by_the_old_root_key_is_refused(refreshed, directory: Path, fleet: Any) -> None:
    fleet.root.version += 1
    fleet.publish_root([CryptoSigner.generate_ed25519()])
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)


def test_metadata_signed_by_a_revoked_key_is_refused(refreshed, directory: Path, fleet: Any) -> None:
    revoked = fleet.signers["timestamp"]
    fleet.rotate("timestamp")
    fleet.signers["timestamp"] = revoked
    fleet.publish()
    with pytest.raises(TrustError, match="refused"):
        refreshed(directory, fleet)
