"""Publishing: what devices accept afterwards, counters, renewal, variants."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from tuf.api.metadata import Metadata, Root

from edgeml.download import fetch
from edgeml.errors import ArtifactError, ConfigError, TrustError
from edgeml.ids import ReleaseId, digest_of_file
from edgeml.source import DirectorySource
from fleet.keys import KeyRing, create_keys
from fleet.repository import Repository

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000


def test_empty_repository_is_accepted_by_a_device_and_lists_nothing(scene) -> None:
    assert scene.names() == ["1.root.json", "1.snapshot.json", "1.targets.json", "timestamp.json"]
    assert scene.repository.releases() == ()
    with pytest.raises(TrustError, match="no signed release"):
        scene.device().target("digits/1.0.0/int8.edgeml")


def test_published_bundle_is_what_a_device_installs(bundle, scene) -> None:
    path = bundle(scene.directory)
    (published,) = scene.publish(path)
    assert published.is_new
    target = scene.device().target("digits/1.0.0/int8.edgeml")
    assert target == published.target
    assert target.digest == digest_of_file(path)
    assert (target.facts.release, target.facts.release_counter) == ("digits@1.0.0", 1)
    assert target.facts.profiles == ("generic-x86-64",)
    source = DirectorySource(scene.repository.directory)
    assert fetch(source, target, scene.directory / "store").path.read_bytes() == path.read_bytes()


def test_initialising_twice_changes_nothing(bundle, scene) -> None:
    scene.publish(bundle(scene.directory))
    before = scene.names()
    scene.repository.initialise(scene.keys, NOW_MS)
    assert scene.names() == before
    assert len(scene.repository.releases()) == 1


def test_initialising_with_other_keys_is_refused(scene) -> None:
    with pytest.raises(ConfigError, match="other keys"):
        scene.repository.initialise(create_keys(scene.directory / "others"), NOW_MS)


def test_directory_without_a_repository_says_what_to_do(tmp_path: Path, keys: KeyRing) -> None:
    repository = Repository(tmp_path / "none")
    for attempt in (
        repository.releases,
        repository.expiries,
        lambda: repository.resign(NOW_MS, keys.snapshot, keys.timestamp),
        lambda: repository.publish([], keys.targets, keys.snapshot, keys.timestamp, NOW_MS),
    ):
        with pytest.raises(ConfigError, match="no repository") as raised:
            attempt()
        assert raised.value.hint


def test_every_release_of_a_model_gets_a_higher_counter_and_models_count_apart(
    bundle, counters, scene
) -> None:
    scene.publish(bundle(scene.directory, "1.0.0"))
    scene.publish(bundle(scene.directory, "0.9.0"), bundle(scene.directory, model="faces"))
    assert counters(scene) == {
        "digits/1.0.0/int8.edgeml": 1,
        "digits/0.9.0/int8.edgeml": 2,
        "faces/1.0.0/int8.edgeml": 1,
    }


def test_variants_of_a_release_share_its_counter_also_when_published_later(bundle, counters, scene) -> None:
    scene.publish(bundle(scene.directory, "1.0.0", "a"), bundle(scene.directory, "1.0.0", "b"))
    scene.publish(bundle(scene.directory, "2.0.0", "a"))
    scene.publish(bundle(scene.directory, "1.0.0", "late"))
    assert counters(scene) == {
        "digits/1.0.0/a.edgeml": 1,
        "digits/1.0.0/b.edgeml": 1,
        "digits/1.0.0/late.edgeml": 1,
        "digits/2.0.0/a.edgeml": 2,
    }


def test_model_whose_name_begins_like_another_counts_apart(bundle, counters, scene) -> None:
    scene.publish(bundle(scene.directory, model="digits"), bundle(scene.directory, model="digits-2"))
    assert set(counters(scene).values()) == {1}


# The same name again


def test_same_bytes_again_are_a_no_op(bundle, scene) -> None:
    path = bundle(scene.directory)
    first = scene.publish(path)
    before = scene.names()
    again = scene.publish(path, path)
    assert [one.is_new for one in again] == [False, False]
    assert again[0].target == first[0].target
    assert scene.names() == before


def test_other_bytes_under_the_same_name_are_refused_and_nothing_of_the_call_is_published(
    bundle,
    scene,
) -> None:
    scene.publish(bundle(scene.directory))
    other = bundle(scene.directory, content=b"changed")
    with pytest.raises(ArtifactError, match="already published with other content") as raised:
        scene.publish(bundle(scene.directory, "2.0.0"), other)
    assert "version" in raised.value.hint
    assert [one.facts.release for one in scene.repository.releases()] == ["digits@1.0.0"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-30],
        lambda data: data.replace(b"weightsweights", b"weightsWeights"),
        lambda _: b"x",
    ],
)
def test_damaged_bundle_is_refused(bundle, scene, damage: Callable[[bytes], bytes]) -> None:
    path = bundle(scene.directory)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError):
        scene.publish(path)
    assert scene.repository.releases() == ()


def test_missing_bundle_is_a_user_error(scene) -> None:
    with pytest.raises(ConfigError, match="cannot open bundle"):
        scene.publish(scene.directory / "none.edgeml")


def test_blob_that_rotted_before_it_was_published_is_written_again(bundle, scene) -> None:
    path = bundle(scene.directory)
    blob = scene.repository.blob_path(digest_of_file(path))
    blob.write_bytes(b"rotten")
    scene.publish(path)
    assert blob.read_bytes() == path.read_bytes()


# Keys


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_key_of_another_role_is_refused_before_anything_is_written(bundle, scene, role: str) -> None:
    signers = {name: getattr(scene.keys, name) for name in ("targets", "snapshot", "timestamp")} | {
        role: scene.keys.root
    }
    before = scene.names()
    with pytest.raises(ConfigError, match=f"{role} key"):
        scene.repository.publish(
            [bundle(scene.directory)], signers["targets"], signers["snapshot"], signers["timestamp"], NOW_MS
        )
    assert scene.names() == before


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.root.json"])
@pytest.mark.parametrize("content", [b"", b"{}", None])
def test_own_metadata_that_is_damaged_is_refused_and_never_signed_over(
    scene, name: str, content: bytes | None
) -> None:
    path = scene.repository.directory / "metadata" / name
    data = path.read_bytes()
    another_expiry = re.sub(rb'"expires": ?"20', b'"expires":"21', data)
    assert another_expiry != data
    path.write_bytes(another_expiry if content is None else content)
    with pytest.raises(TrustError) as raised:
        scene.resign(NOW_MS + 30 * DAY_MS)
    assert "restore" in raised.value.hint


def test_repository_follows_a_rotated_root(scene, tmp_path: Path) -> None:
    new = create_keys(tmp_path / "new")
    path = scene.repository.directory / "metadata" / "1.root.json"
    metadata = Metadata[Root].from_bytes(path.read_bytes())
    root = metadata.signed
    root.version = 2
    root.revoke_key(scene.keys.timestamp.public_key.keyid, "timestamp")
    root.add_key(new.timestamp.public_key, "timestamp")
    rotated = Metadata(root)
    rotated.sign(scene.keys.root)
    (path.parent / "2.root.json").write_bytes(rotated.to_bytes())
    with pytest.raises(TrustError):  # its timestamp is by the old key
        scene.repository.releases()


# Renewal


def test_nothing_is_renewed_while_more_than_half_of_its_life_is_left(scene) -> None:
    assert scene.resign(NOW_MS + 3 * DAY_MS) == ()


def test_timestamp_is_renewed_after_half_its_life_and_a_device_accepts_it(scene) -> None:
    scene.device()
    assert scene.resign(NOW_MS + 4 * DAY_MS) == ("timestamp",)
    assert scene.resign(NOW_MS + 4 * DAY_MS) == ()
    scene.device(NOW_MS + 10 * DAY_MS)
    assert scene.repository.expiries().timestamp_at_ms == NOW_MS + 11 * DAY_MS


def test_snapshot_is_renewed_with_the_timestamp(bundle, scene) -> None:
    scene.publish(bundle(scene.directory))
    assert scene.resign(NOW_MS + 16 * DAY_MS) == ("snapshot", "timestamp")
    assert scene.device(NOW_MS + 22 * DAY_MS).target("digits/1.0.0/int8.edgeml")


def test_expired_repository_is_refused_by_a_device_and_can_be_renewed(scene) -> None:
    late = NOW_MS + 40 * DAY_MS
    with pytest.raises(TrustError, match="expired"):
        scene.device(late)
    assert scene.resign(late) == ("snapshot", "timestamp")
    scene.device(late)


def test_publishing_nothing_renews_the_targets_when_half_their_life_is_over(scene) -> None:
    assert scene.publish(now_ms=NOW_MS + 100 * DAY_MS) == ()
    assert scene.repository.expiries().targets_at_ms == NOW_MS + 365 * DAY_MS
    scene.publish(now_ms=NOW_MS + 200 * DAY_MS)
    assert scene.repository.expiries().targets_at_ms == NOW_MS + 565 * DAY_MS
    scene.device(NOW_MS + 200 * DAY_MS)


def test_months_of_renewals_never_leave_a_device_without_valid_metadata(bundle, scene) -> None:
    scene.publish(bundle(scene.directory))
    for day in range(0, 90, 3):
        scene.resign(NOW_MS + day * DAY_MS)
        scene.device(NOW_MS + day * DAY_MS + DAY_MS)
    assert len(scene.names()) < 15


# Variants


def test_variant_for_a_profile_is_the_most_specific_one(bundle, scene) -> None:
    scene.publish(
        bundle(scene.directory, variant="all", profiles=("a", "b", "c")),
        bundle(scene.directory, variant="two", profiles=("a", "b")),
        bundle(scene.directory, variant="other", profiles=("a", "c")),
    )

    def variant(release: str, profile: str) -> str | None:
        found = scene.repository.variant_for(ReleaseId(release), profile)
        return found.facts.variant if found else None

    assert variant("digits@1.0.0", "a") == "other"
    assert variant("digits@1.0.0", "b") == "two"
    assert variant("digits@1.0.0", "z") is None
    assert variant("digits@9.0.0", "a") is None


def test_other_process_publishing_is_seen_at_once_and_reading_is_cheap_meanwhile(bundle, scene) -> None:
    reader = Repository(scene.repository.directory)
    assert reader.releases() == ()
    scene.publish(bundle(scene.directory))
    assert len(reader.releases()) == 1
    with mock.patch.object(Repository, "_load", side_effect=AssertionError("read again")):
        assert len(reader.releases()) == 1
