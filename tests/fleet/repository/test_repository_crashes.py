"""Crashes at every write, full disks, and publishers in competition."""

from __future__ import annotations

import copy
import datetime as dt
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from unittest import mock

import pytest

from edgeml.download import fetch
from edgeml.errors import ConfigError, StorageError
from edgeml.ids import digest_of_file
from edgeml.source import DirectorySource
from fleet.keys import KeyRing, create_keys
from fleet.repository import Repository

NOW_MS = 1_790_000_000_000
DAY_MS = 86_400_000


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", range(1, 7))
def test_crash_at_any_write_leaves_the_old_or_the_new_state(bundle, scene, step: int, after: bool) -> None:
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
    assert found == (["digits@1.0.0", "digits@2.0.0"] if step == 6 and after else ["digits@1.0.0"])
    assert scene.device().target("digits/1.0.0/int8.edgeml")
    scene.publish(*paths)
    target = scene.device().target("digits/2.0.0/int8.edgeml")
    assert target.facts.release_counter == 2
    assert fetch(DirectorySource(scene.repository.directory), target, scene.directory / "store")


def test_publication_writes_exactly_five_files_the_timestamp_last(bundle, scene) -> None:
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


def test_full_disk_leaves_the_old_state(bundle, scene) -> None:
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


def test_publishers_at_the_same_time_take_turns(bundle, counters, scene) -> None:
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
        thread.join(60)
    assert errors == []
    assert sorted(counters(scene).values()) == [1, 2, 3, 4, 5, 6]


def test_writer_that_waits_too_long_says_who_is_in_the_way(scene, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_killed_publisher_leaves_a_repository_that_works(
    bundle, counters, new_scene, tmp_path: Path, delay_s: float
) -> None:
    keys = create_keys(tmp_path / "keys")
    scene = new_scene(tmp_path, keys)
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
    process.wait(60)
    process.stdout.close()
    published = counters(scene)
    assert sorted(published.values()) == list(range(1, len(published) + 1))
    store = scene.device()
    assert all(store.target(path) for path in published)
    scene.publish(bundle(tmp_path, "99.0.0"))
    assert counters(scene)["digits/99.0.0/int8.edgeml"] == len(published) + 1


def test_expiries_are_told(scene) -> None:
    expiries = scene.repository.expiries()
    assert expiries.snapshot_at_ms == NOW_MS + 30 * DAY_MS
    assert expiries.root_at_ms > dt.datetime.now(dt.UTC).timestamp() * 1000
