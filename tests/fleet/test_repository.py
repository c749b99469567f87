"""Publishing: what devices accept afterwards, counters, renewal, and crashes at every write."""

from __future__ import annotations

import copy
import datetime as dt
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from tuf.api.metadata import Metadata, Root

from edgeml.bundle import write_bundle
from edgeml.download import fetch
from edgeml.errors import ArtifactError, ConfigError, StorageError, TrustError
from edgeml.ids import ReleaseId, digest_of, digest_of_file
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily
from edgeml.source import DirectorySource
from edgeml.tensors import BATCH, DType, TensorSpec
from edgeml.trust import TrustStore
from fleet.keys import KeyRing, create_keys
from fleet.repository import PublishedVariant, Repository

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000


def bundle(directory: Path, version: str = "1.0.0", variant: str = "int8", **changes) -> Path:
    manifest = Manifest(
        model=changes.get("model", "digits"),
        version=version,
        variant=variant,
        runtime=RuntimeFamily.ONNX,
        profiles=changes.get("profiles", ("generic-x86-64",)),
        inputs=(TensorSpec("x", DType.FLOAT32, (BATCH, 4)),),
        outputs=(TensorSpec("y", DType.FLOAT32, (BATCH, 2)),),
        files=(),
        measurement=Measurement("host", "onnxruntime", 1, 1.0, 2.0, 1000),
        provenance=Provenance("model.pt", digest_of(b"")),
    )
    path = directory / f"{manifest.model}-{version}-{variant}.edgeml"
    write_bundle(path, manifest, {"model.onnx": changes.get("content", b"weights") * 100})
    return path


class Scene:
    """A repository with its keys, and a device that trusts them."""

    def __init__(self, directory: Path, keys: KeyRing) -> None:
        self.directory, self.keys = directory, keys
        self.repository = Repository(directory / "repository")
        self.repository.initialise(keys, NOW_MS)

    def publish(self, *paths: Path, now_ms: int = NOW_MS) -> tuple[PublishedVariant, ...]:
        keys = self.keys
        return self.repository.publish(paths, keys.targets, keys.snapshot, keys.timestamp, now_ms)

    def resign(self, now_ms: int) -> tuple[str, ...]:
        return self.repository.resign(now_ms, self.keys.snapshot, self.keys.timestamp)

    def device(self, now_ms: int = NOW_MS, name: str = "device") -> TrustStore:
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        (directory / "root.json").write_bytes(self.keys.anchor)
        store = TrustStore(directory, DirectorySource(self.repository.directory), now_ms=now_ms)
        store.refresh()
        return store

    def names(self) -> list[str]:
        return sorted(path.name for path in (self.repository.directory / "metadata").iterdir())


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> KeyRing:
    return create_keys(tmp_path_factory.mktemp("keys") / "keys")


@pytest.fixture
def scene(tmp_path: Path, keys: KeyRing) -> Scene:
    return Scene(tmp_path, keys)


def test_empty_repository_is_accepted_by_a_device_and_lists_nothing(scene: Scene) -> None:
    assert scene.names() == ["1.root.json", "1.snapshot.json", "1.targets.json", "timestamp.json"]
    assert scene.repository.releases() == ()
    with pytest.raises(TrustError, match="no signed release"):
        scene.device().target("digits/1.0.0/int8.edgeml")


def test_published_bundle_is_what_a_device_installs(scene: Scene) -> None:
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


def test_initialising_twice_changes_nothing(scene: Scene) -> None:
    scene.publish(bundle(scene.directory))
    before = scene.names()
    scene.repository.initialise(scene.keys, NOW_MS)
    assert scene.names() == before
    assert len(scene.repository.releases()) == 1


def test_initialising_with_other_keys_is_refused(scene: Scene) -> None:
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


# Counters


def counters(scene: Scene) -> dict[str, int]:
    return {one.path: one.facts.release_counter for one in scene.repository.releases()}


def test_every_release_of_a_model_gets_a_higher_counter_and_models_count_apart(scene: Scene) -> None:
    scene.publish(bundle(scene.directory, "1.0.0"))
    scene.publish(bundle(scene.directory, "0.9.0"), bundle(scene.directory, model="faces"))
    assert counters(scene) == {
        "digits/1.0.0/int8.edgeml": 1,
        "digits/0.9.0/int8.edgeml": 2,
        "faces/1.0.0/int8.edgeml": 1,
    }


def test_variants_of_a_release_share_its_counter_also_when_published_later(scene: Scene) -> None:
    scene.publish(bundle(scene.directory, "1.0.0", "a"), bundle(scene.directory, "1.0.0", "b"))
    scene.publish(bundle(scene.directory, "2.0.0", "a"))
    scene.publish(bundle(scene.directory, "1.0.0", "late"))
    assert counters(scene) == {
        "digits/1.0.0/a.edgeml": 1,
        "digits/1.0.0/b.edgeml": 1,
        "digits/1.0.0/late.edgeml": 1,
        "digits/2.0.0/a.edgeml": 2,
    }


def test_model_whose_name_begins_like_another_counts_apart(scene: Scene) -> None:
    scene.publish(bundle(scene.directory, model="digits"), bundle(scene.directory, model="digits-2"))
    assert set(counters(scene).values()) == {1}


# The same name again


def test_same_bytes_again_are_a_no_op(scene: Scene) -> None:
    path = bundle(scene.directory)
    first = scene.publish(path)
    before = scene.names()
    again = scene.publish(path, path)
    assert [one.is_new for one in again] == [False, False]
    assert again[0].target == first[0].target
    assert scene.names() == before


def test_other_bytes_under_the_same_name_are_refused_and_nothing_of_the_call_is_published(
    scene: Scene,
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
def test_damaged_bundle_is_refused(scene: Scene, damage: Callable[[bytes], bytes]) -> None:
    path = bundle(scene.directory)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError):
        scene.publish(path)
    assert scene.repository.releases() == ()


def test_missing_bundle_is_a_user_error(scene: Scene) -> None:
    with pytest.raises(ConfigError, match="cannot read bundle"):
        scene.publish(scene.directory / "none.edgeml")


def test_blob_that_rotted_before_it_was_published_is_written_again(scene: Scene) -> None:
    path = bundle(scene.directory)
    blob = scene.repository.blob_path(digest_of_file(path))
    blob.write_bytes(b"rotten")
    scene.publish(path)
    assert blob.read_bytes() == path.read_bytes()


# Keys


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_key_of_another_role_is_refused_before_anything_is_written(scene: Scene, role: str) -> None:
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
    scene: Scene, name: str, content: bytes | None
) -> None:
    path = scene.repository.directory / "metadata" / name
    data = path.read_bytes()
    another_expiry = re.sub(rb'"expires": ?"20', b'"expires":"21', data)
    assert another_expiry != data
    path.write_bytes(another_expiry if content is None else content)
    with pytest.raises(TrustError) as raised:
        scene.resign(NOW_MS + 30 * DAY_MS)
    assert "restore" in raised.value.hint


def test_repository_follows_a_rotated_root(scene: Scene, tmp_path: Path) -> None:
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


def test_nothing_is_renewed_while_more_than_half_of_its_life_is_left(scene: Scene) -> None:
    assert scene.resign(NOW_MS + 3 * DAY_MS) == ()


def test_timestamp_is_renewed_after_half_its_life_and_a_device_accepts_it(scene: Scene) -> None:
    scene.device()
    assert scene.resign(NOW_MS + 4 * DAY_MS) == ("timestamp",)
    assert scene.resign(NOW_MS + 4 * DAY_MS) == ()
    scene.device(NOW_MS + 10 * DAY_MS)
    assert scene.repository.expiries().timestamp_at_ms == NOW_MS + 11 * DAY_MS


def test_snapshot_is_renewed_with_the_timestamp(scene: Scene) -> None:
    scene.publish(bundle(scene.directory))
    assert scene.resign(NOW_MS + 16 * DAY_MS) == ("snapshot", "timestamp")
    assert scene.device(NOW_MS + 22 * DAY_MS).target("digits/1.0.0/int8.edgeml")


def test_expired_repository_is_refused_by_a_device_and_can_be_renewed(scene: Scene) -> None:
    late = NOW_MS + 40 * DAY_MS
    with pytest.raises(TrustError, match="expired"):
        scene.device(late)
    assert scene.resign(late) == ("snapshot", "timestamp")
    scene.device(late)


def test_publishing_nothing_renews_the_targets_when_half_their_life_is_over(scene: Scene) -> None:
    assert scene.publish(now_ms=NOW_MS + 100 * DAY_MS) == ()
    assert scene.repository.expiries().targets_at_ms == NOW_MS + 365 * DAY_MS
    scene.publish(now_ms=NOW_MS + 200 * DAY_MS)
    assert scene.repository.expiries().targets_at_ms == NOW_MS + 565 * DAY_MS
    scene.device(NOW_MS + 200 * DAY_MS)


def test_months_of_renewals_never_leave_a_device_without_valid_metadata(scene: Scene) -> None:
    scene.publish(bundle(scene.directory))
    for day in range(0, 90, 3):
        scene.resign(NOW_MS + day * DAY_MS)
        scene.device(NOW_MS + day * DAY_MS + DAY_MS)
    assert len(scene.names()) < 15


# Variants


def test_variant_for_a_profile_is_the_most_specific_one(scene: Scene) -> None:
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


def test_other_process_publishing_is_seen_at_once_and_reading_is_cheap_meanwhile(scene: Scene) -> None:
    reader = Repository(scene.repository.directory)
    assert reader.releases() == ()
    scene.publish(bundle(scene.directory))
    assert len(reader.releases()) == 1
    with mock.patch.object(Repository, "_load", side_effect=AssertionError("read again")):
        assert len(reader.releases()) == 1


# Crashes and competition


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(1, 6))
def test_crash_at_any_write_leaves_the_old_or_the_new_state(scene: Scene, step: int, after: bool) -> None:
    scene.publish(bundle(scene.directory, "1.0.0"))
    scene.device()
    paths = [bundle(scene.directory, "2.0.0")]
    count, real = 0, Path.replace

    def killed(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count == step and not after:
            raise Killed
        result = real(self, target)
        if count == step:
            raise Killed
        return result

    with mock.patch.object(Path, "replace", killed), pytest.raises(Killed):
        scene.publish(*paths)
    found = [one.facts.release for one in Repository(scene.repository.directory).releases()]
    assert found == (["digits@1.0.0", "digits@2.0.0"] if step == 5 and after else ["digits@1.0.0"])
    assert scene.device().target("digits/1.0.0/int8.edgeml")
    scene.publish(*paths)
    target = scene.device().target("digits/2.0.0/int8.edgeml")
    assert target.facts.release_counter == 2
    assert fetch(DirectorySource(scene.repository.directory), target, scene.directory / "store")


def test_publication_writes_exactly_five_files_the_timestamp_last(scene: Scene) -> None:
    targets: list[str] = []
    real = Path.replace

    def noted(self: Path, target: Path) -> Path:
        targets.append(target.name)
        return real(self, target)

    path = bundle(scene.directory)
    with mock.patch.object(Path, "replace", noted):
        scene.publish(path)
    assert targets[0] == digest_of_file(path)
    assert targets[2:] == ["2.targets.json", "2.snapshot.json", "timestamp.json"]


def test_full_disk_leaves_the_old_state(scene: Scene) -> None:
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        real(descriptor)

    with mock.patch.object(os, "fsync", full), pytest.raises(StorageError, match="no space"):
        scene.publish(bundle(scene.directory))
    assert scene.repository.releases() == ()
    scene.device()


def test_initialisation_that_was_interrupted_goes_on(tmp_path: Path, keys: KeyRing) -> None:
    directory = tmp_path / "repository"
    for step in range(1, 5):
        shutil.rmtree(directory, ignore_errors=True)
        count = 0

        def killed(self: Path, target: Path, step: int = step, real=Path.replace) -> Path:
            nonlocal count
            count += 1
            if count == step:
                raise Killed
            return real(self, target)

        with mock.patch.object(Path, "replace", killed), pytest.raises(Killed):
            Repository(directory).initialise(keys, NOW_MS)
        Repository(directory).initialise(keys, NOW_MS)
        assert Repository(directory).releases() == ()


def test_publishers_at_the_same_time_take_turns(scene: Scene) -> None:
    paths = [bundle(scene.directory, f"{number}.0.0") for number in range(6)]
    errors: list[BaseException] = []

    def publish(path: Path) -> None:
        try:
            keys = copy.copy(scene.keys)
            Repository(scene.repository.directory).publish(
                [path], keys.targets, keys.snapshot, keys.timestamp, NOW_MS
            )
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=[path]) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert sorted(counters(scene).values()) == [1, 2, 3, 4, 5, 6]


def test_writer_that_waits_too_long_says_who_is_in_the_way(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.repository.LOCK_WAIT_S", 0.1)
    with scene.repository._lock(), pytest.raises(ConfigError, match="another process"):
        Repository(scene.repository.directory).resign(NOW_MS, scene.keys.snapshot, scene.keys.timestamp)


PUBLISHER = """
import sys
from pathlib import Path
from fleet.keys import load_keys
from fleet.repository import Repository
directory = Path(sys.argv[1])
keys = load_keys(directory / "keys")
print("ready", flush=True)
for path in sorted(directory.glob("digits-*.edgeml")):
    Repository(directory / "repository").publish([path], keys.targets, keys.snapshot, keys.timestamp, int(sys.argv[2]))
"""


@pytest.mark.processes
@pytest.mark.parametrize("delay_s", [0.005, 0.03, 0.08, 0.15])
def test_killed_publisher_leaves_a_repository_that_works(tmp_path: Path, delay_s: float) -> None:
    keys = create_keys(tmp_path / "keys")
    scene = Scene(tmp_path, keys)
    for number in range(30):
        bundle(tmp_path, f"{number}.0.0")
    now = str(NOW_MS)
    process = subprocess.Popen(
        [sys.executable, "-c", PUBLISHER, str(tmp_path), now],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    threading.Event().wait(delay_s)
    process.kill()
    process.wait(10)
    process.stdout.close()
    published = counters(scene)
    assert sorted(published.values()) == list(range(1, len(published) + 1))
    store = scene.device()
    assert all(store.target(path) for path in published)
    scene.publish(bundle(tmp_path, "99.0.0"))
    assert counters(scene)["digits/99.0.0/int8.edgeml"] == len(published) + 1


def test_expiries_are_told(scene: Scene) -> None:
    expiries = scene.repository.expiries()
    assert expiries.snapshot_at_ms == NOW_MS + 30 * DAY_MS
    assert expiries.root_at_ms > dt.datetime.now(dt.UTC).timestamp() * 1000
