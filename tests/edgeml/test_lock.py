"""A lock is held by one process, is seen by others, and ends with its holder however that ends."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edgeml.errors import ConfigError, StorageError, TransferError
from edgeml.lock import Lock, is_held, waiting_lock

ROOT = Path(__file__).parents[2]


def holder(path):
    code = f"import sys; from pathlib import Path; from edgeml.lock import Lock; lock = Lock(Path({str(path)!r}), '', ''); print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_killed_holder_leaves_nothing_behind(tmp_path):
    path = tmp_path / "new" / "one.lock"
    assert not is_held(path)
    process = holder(path)
    try:
        assert is_held(path)
        with pytest.raises(ConfigError, match="somebody is here") as caught:
            Lock(path, "somebody is here", "go elsewhere")
        assert caught.value.hint == "go elsewhere"
    finally:
        process.kill()
        process.communicate()
    assert not is_held(path)
    Lock(path, "", "").release()


def test_a_lock_that_was_given_back_can_be_taken_again(tmp_path):
    lock = Lock(tmp_path / "one.lock", "", "")
    assert is_held(tmp_path / "one.lock")
    lock.release()
    assert not is_held(tmp_path / "one.lock")


def test_a_place_where_no_lock_can_lie_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError):
        Lock(tmp_path / "file" / "one.lock", "", "")


def test_who_can_wait_gets_the_lock_when_its_holder_dies(tmp_path):
    path = tmp_path / "one.lock"
    process = holder(path)
    killer = threading.Timer(0.3, process.kill)
    killer.start()
    try:
        with waiting_lock(path, 20.0):
            assert process.wait(60) is not None
            assert is_held(path)
    finally:
        killer.join()
        process.communicate()
    assert not is_held(path)


def test_nobody_waits_for_ever(tmp_path):
    path = tmp_path / "one.lock"
    process = holder(path)
    try:
        with pytest.raises(TransferError, match="held by another process"), waiting_lock(path, 0.1):
            pytest.fail("two have it")
    finally:
        process.kill()
        process.communicate()
