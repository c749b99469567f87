"""Key files: modes, never overwritten, and what is said about wrong ones."""

from __future__ import annotations

import datetime as dt
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tuf.api.metadata import Metadata, Root

from edgeml.errors import ConfigError, StorageError
from fleet.keys import PLACES, create_keys, key_path, load_keys, load_signer

FILES = ("offline/root.pem", "offline/targets.pem", "online/snapshot.pem", "online/timestamp.pem")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_lie_where_they_belong_and_only_their_owner_reads_them(tmp_path: Path) -> None:
    create_keys(tmp_path / "keys")
    found = sorted(
        str(path.relative_to(tmp_path / "keys")) for path in (tmp_path / "keys").rglob("*") if path.is_file()
    )
    assert found == [*FILES, "root.json"]
    assert {mode(tmp_path / "keys" / name) for name in FILES} == {0o600}
    assert {mode(tmp_path / "keys" / name) for name in (".", "offline", "online")} == {0o700}


def test_keys_are_private_whatever_the_umask_was(tmp_path: Path) -> None:
    import os

    before = os.umask(0)
    try:
        create_keys(tmp_path / "keys")
    finally:
        os.umask(before)
    assert {mode(tmp_path / "keys" / name) for name in FILES} == {0o600}
    assert mode(tmp_path / "keys/offline") == 0o700


def test_root_names_a_different_key_for_each_role_and_is_signed_by_its_own(tmp_path: Path) -> None:
    keys = create_keys(tmp_path / "keys")
    metadata = Metadata[Root].from_bytes((tmp_path / "keys/root.json").read_bytes())
    root = metadata.signed
    assert metadata.to_bytes() == keys.anchor
    assert (root.version, root.consistent_snapshot) == (1, True)
    assert {role: root.roles[role].threshold for role in PLACES} == dict.fromkeys(PLACES, 1)
    assert len({root.roles[role].keyids[0] for role in PLACES}) == 4
    assert root.get_root_verification_result(None, metadata.signed_bytes, metadata.signatures)
    assert root.expires > dt.datetime.now(dt.UTC) + dt.timedelta(days=3650)


def test_loaded_keys_are_the_ones_that_were_made(tmp_path: Path) -> None:
    made, loaded = create_keys(tmp_path / "keys"), load_keys(tmp_path / "keys")
    for role in PLACES:
        assert getattr(made, role).public_key == getattr(loaded, role).public_key
    assert made.anchor == loaded.anchor


def test_second_time_changes_nothing_and_says_so(tmp_path: Path) -> None:
    create_keys(tmp_path / "keys")
    before = {path: path.read_bytes() for path in (tmp_path / "keys").rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="never overwritten") as raised:
        create_keys(tmp_path / "keys")
    assert "nothing is to be done" in raised.value.hint
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("name", [*FILES, "root.json"])
def test_any_single_key_that_is_there_stops_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "keys" / name).parent.mkdir(parents=True)
    (tmp_path / "keys" / name).write_bytes(b"precious")
    with pytest.raises(ConfigError, match=name):
        create_keys(tmp_path / "keys")
    assert [path.read_bytes() for path in (tmp_path / "keys").rglob("*") if path.is_file()] == [b"precious"]


def test_passphrase_encrypts_the_offline_keys_only(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys", b"correct horse")
    assert load_signer(key_path(tmp_path / "keys", "timestamp")).public_key == made.timestamp.public_key
    root = key_path(tmp_path / "keys", "root")
    assert b"ENCRYPTED" in root.read_bytes()
    assert load_signer(root, b"correct horse").public_key == made.root.public_key
    assert load_keys(tmp_path / "keys", b"correct horse").targets.public_key == made.targets.public_key
    with pytest.raises(ConfigError, match="encrypted") as raised:
        load_signer(root)
    assert "--passphrase-file" in raised.value.hint
    with pytest.raises(ConfigError, match="passphrase is another"):
        load_signer(root, b"battery staple")


def test_passphrase_for_a_plain_key_is_not_needed_and_no_error(tmp_path: Path) -> None:
    made = create_keys(tmp_path / "keys")
    assert load_signer(key_path(tmp_path / "keys", "root"), b"unneeded").public_key == made.root.public_key


def test_missing_key_says_where_it_may_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist") as raised:
        load_signer(tmp_path / "offline/root.pem")
    assert "medium" in raised.value.hint


@pytest.mark.parametrize(
    "content",
    [b"", b"\x00" * 100, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"x" * (1 << 20)],
)
def test_file_that_is_no_key_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(ConfigError, match="cannot use key") as raised:
        load_signer(tmp_path / "key.pem")
    assert "\n" not in raised.value.message
    assert raised.value.hint


def test_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = generate_private_key(SECP256R1())
    (tmp_path / "key.pem").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ConfigError, match="ed25519"):
        load_signer(tmp_path / "key.pem")


def test_directory_instead_of_a_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        load_signer(tmp_path)


def test_place_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        create_keys(tmp_path / "file" / "keys")


def test_private_keys_are_in_no_repr(tmp_path: Path) -> None:
    assert repr(create_keys(tmp_path / "keys")) == "KeyRing()"
