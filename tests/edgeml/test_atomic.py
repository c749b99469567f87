"""Atomic files: the old one or the new one, and never a third thing left behind."""

import errno
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgeml import atomic
from edgeml.errors import ConfigError, StorageError

ROOT = Path(__file__).parents[2]


def test_a_new_file_and_its_directories_appear(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_the_mode_is_the_one_asked_for_whatever_the_old_file_had(tmp_path, mode):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o777)
    atomic.write_bytes(path, b"new", mode=mode)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_secrets_are_the_owners_alone_unless_said_otherwise(tmp_path):
    atomic.write_bytes(tmp_path / "file", b"secret")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def test_a_place_for_a_file_is_checked_without_touching_it(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    for place in (tmp_path / "file", tmp_path / "new", tmp_path / "a" / "b" / "new"):
        atomic.check_place(place)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    for place in (tmp_path, Path(), Path("/"), Path("/dev/null"), tmp_path / "file" / "new"):
        with pytest.raises(ConfigError, match="cannot write") as caught:
            atomic.check_place(place)
        assert caught.value.hint


def test_an_open_reader_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")
    with path.open("rb") as reader:
        atomic.write_bytes(path, b"new")
        assert reader.read() == b"old"
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [ValueError("ours"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")

    def write():
        with atomic.replacing(path) as temporary:
            temporary.write_bytes(b"half of the n")
            raise error

    with pytest.raises(type(error)):
        write()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "no space left"), (errno.EDQUOT, "no space left"), (errno.EROFS, "Read-only"),
        (errno.EACCES, "Permission denied"), (errno.EIO, "Input/output error"),
    ],
)  # fmt: skip
def test_what_the_disk_refuses_is_a_storage_error_and_the_old_file_stands(
    tmp_path, monkeypatch, call, number, says
):
    path = tmp_path / "file"
    atomic.write_bytes(path, b"old")

    def refuse(*_args, **_more):
        raise OSError(number, os.strerror(number))

    owner = Path if call == "replace" else os
    monkeypatch.setattr(owner, call, refuse)
    with pytest.raises(StorageError) as raised:
        atomic.write_bytes(path, b"new")
    assert says in raised.value.message
    assert str(path) in raised.value.message
    assert raised.value.hint
    assert raised.value.exit_code == 5
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_directory_in_the_place_of_the_file_is_a_storage_error(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError):
        atomic.write_bytes(tmp_path / "file", b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_file_in_the_place_of_a_directory_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        atomic.write_bytes(tmp_path / "file" / "below", b"new")


def test_content_is_synced_before_the_rename_and_the_directory_after_it(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(str(Path(f"/proc/self/fd/{fd}").readlink())), real_fsync(fd))
    )
    monkeypatch.setattr(Path, "replace", lambda self, to: (calls.append("rename"), real_replace(self, to)))
    atomic.write_bytes(tmp_path / "file", b"new")
    assert calls[0].startswith(str(tmp_path / ".file."))
    assert calls[1:] == ["rename", str(tmp_path)]


WRITER = """
import sys
from pathlib import Path
from edgeml import atomic
path = Path(sys.argv[1])
for number in range(10**6):
    atomic.write_bytes(path, b"%08d" % number * 5000)
    print(number, flush=True)
"""


@pytest.mark.processes
def test_kill_9_leaves_a_whole_file(tmp_path):
    path = tmp_path / "file"
    for _ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )  # fmt: skip
        for _ in range(20):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        process.stdout.close()
        data = path.read_bytes()
        assert data == data[:8] * 5000
