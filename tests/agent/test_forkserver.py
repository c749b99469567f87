"""The forkserver: workers come quickly, their ends are told once and truly, and its own death is survived."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.forkserver import LOST, RUNNING, ForkServer
from agent.supervisor import Supervisor, installed_preload
from edgeml.errors import BackendError

from ..waiting import wait_for

pytestmark = pytest.mark.processes


@pytest.fixture
def own():
    """A forkserver of this test alone."""
    made = ForkServer(installed_preload())
    yield made
    made.close()


class Forked:
    """A worker that was loaded with nothing yet."""

    def __init__(self, forkserver):
        self.stream, theirs = socket.socketpair()
        self.lifeline, held = os.pipe()
        try:
            with theirs:
                self.pid = forkserver.fork(theirs, held)
        except BackendError:
            self.close()
            raise
        finally:
            os.close(held)

    def gone(self):
        """Tell whether its lifeline has ended."""
        os.set_blocking(self.lifeline, False)
        with contextlib.suppress(BlockingIOError):
            return os.read(self.lifeline, 1) == b""
        return False

    def close(self):
        self.stream.close()
        os.close(self.lifeline)


@pytest.fixture
def fork(own):
    made = []

    def make():
        made.append(Forked(own))
        return made[-1]

    yield make
    for one in made:
        one.close()


def status(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def reap(forkserver, pid):
    found = []

    def is_over():
        found.append(forkserver.reap(pid))
        return found[-1] != RUNNING

    wait_for(is_over, "its end")
    return found[-1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_an_end_is_told_once_and_truly(own, fork, number):
    worker = fork()
    assert own.reap(worker.pid) == RUNNING
    os.kill(worker.pid, number)
    wait_for(worker.gone, "it to go")
    assert reap(own, worker.pid) == -number
    assert own.reap(worker.pid) == LOST


def test_a_worker_whose_supervisor_closes_ends_by_itself(own, fork):
    worker = fork()
    worker.stream.close()
    wait_for(worker.gone, "it to go")
    assert reap(own, worker.pid) == 1


def test_a_dead_worker_keeps_its_process_id_until_its_end_is_asked_for(own, fork):
    """Else a signal meant for it could hit another process."""
    worker = fork()
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(worker.gone, "it to go")
    time.sleep(0.1)
    assert status(worker.pid)[0] == "Z"
    reap(own, worker.pid)
    assert not Path(f"/proc/{worker.pid}").exists()


def test_a_process_that_is_no_worker_is_not_waited_for(own):
    own.start()
    assert own.reap(os.getpid()) == LOST
    assert own.reap(1) == LOST


def test_the_death_of_one_worker_is_not_hidden_by_another(own, fork):
    """A forked worker must not inherit what tells of another one's end."""
    first, second = fork(), fork()
    os.kill(first.pid, signal.SIGKILL)
    wait_for(first.gone, "it to go")
    assert reap(own, first.pid) == -signal.SIGKILL
    assert own.reap(second.pid) == RUNNING


def test_its_death_takes_its_workers_and_the_next_fork_starts_another(own, fork):
    worker = fork()
    os.kill(own._process.pid, signal.SIGKILL)
    wait_for(worker.gone, "it to go")
    assert reap(own, worker.pid) == LOST
    assert own.reap(fork().pid) == RUNNING


def test_one_that_hangs_is_replaced(own, fork):
    fork()
    os.kill(own._process.pid, signal.SIGSTOP)
    own._control.settimeout(0.3)  # a minute is for slow devices
    worker = fork()
    assert own.reap(worker.pid) == RUNNING


def test_one_that_cannot_live_is_an_error(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    broken = ForkServer(())
    with pytest.raises(BackendError, match="the forkserver dies"):
        Forked(broken)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with pytest.raises(BackendError, match="no worker can be started"):
        Forked(broken)
    broken.close()


def test_many_threads_fork_and_reap_at_once(own):
    found = []

    def run():
        for _ in range(5):
            worker = Forked(own)
            os.kill(worker.pid, signal.SIGKILL)
            wait_for(worker.gone, "it to go")
            found.append(reap(own, worker.pid))
            worker.close()

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [-signal.SIGKILL] * 30


def test_no_descriptor_and_no_process_is_left_behind(own):
    own.start()

    def once():
        worker = Forked(own)
        os.kill(worker.pid, signal.SIGKILL)
        wait_for(worker.gone, "it to go")
        reap(own, worker.pid)
        worker.close()

    once()
    server = Path(f"/proc/{own._process.pid}")
    before = [len(list(Path(path).iterdir())) for path in ("/proc/self/fd", server / "fd")]
    for _ in range(20):
        once()
    assert [len(list(Path(path).iterdir())) for path in ("/proc/self/fd", server / "fd")] == before
    children = (server / "task" / str(own._process.pid) / "children").read_text().split()
    assert children == []


def test_it_is_in_a_group_of_its_own_and_has_no_second_helper(own, fork):
    worker = fork()
    assert os.getpgid(worker.pid) == os.getpgid(own._process.pid) == own._process.pid != os.getpgid(0)
    helpers = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "args="], capture_output=True, text=True, check=False
    ).stdout
    assert "resource_tracker" not in helpers


def test_a_supervisor_has_one_of_its_own_unless_it_is_given_one(own, sample, ask):
    alone, sharing = Supervisor(), Supervisor(own)
    for one in (alone, sharing):
        assert one.load(*sample).infer(ask()).outputs
        one.close()
    assert alone._forkserver._process is None
    assert own._process.poll() is None
