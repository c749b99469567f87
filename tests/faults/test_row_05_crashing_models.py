"""Row 5: models that crash, hang or go wrong take nothing along but themselves.

A reboot loop in the trial: `tests/agent/test_power_cut.py` (`test_restarts_without_end_during_a_trial_end_on_the_old_release`).
One that leaks beyond its budget: row 21.
"""

import os
import signal
import time
from pathlib import Path

import pytest

from agent.forkserver import ForkServer
from agent.supervisor import Supervisor, WorkerLimits, installed_preload
from edgeml.errors import BackendError
from edgeml.twin import Outcome

from .bundles import hanging
from .ends import one_active_model
from .points import MODEL, Life, stage

__all__ = ["stage"]
pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]
GOLDEN_TIMEOUT_S = 6.0


def workers_of(life):
    """Processes that an agent's forkserver has forked."""
    found = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdecimal() and (path / "comm").read_text().strip() == "edgeml-worker":
                parent = _parent(path)
                if _parent(Path("/proc") / str(parent)) == life.process.pid:
                    found.append(int(path.name))
        except OSError:
            continue
    return found


def _parent(path):
    return int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])


def test_three_segfaults_after_the_commit_go_back_to_the_previous_release(stage):
    storage = stage.copy("crashes", "2.0.0")
    life = Life(storage.parent / "life", storage)
    try:
        assert life.run_to(lambda: life.is_done(stage.digest("2.0.0")) and life.ask() == "2.0.0", "2.0.0")
        killed = set()

        def strike():
            for pid in set(workers_of(life)) - killed:
                os.kill(pid, signal.SIGSEGV)
                killed.add(pid)
            return len(killed) >= 3 or life.ask() == "1.0.0"

        assert life.run_to(strike, "three workers to die")
        assert life.run_to(lambda: life.ask() == "1.0.0", "the previous release"), life.words()
        assert life.run_to(lambda: life.entry().outcome is Outcome.ROLLED_BACK, "the end of the rollback")
        assert "died 3 times" in life.entry().reason
        assert "SIGSEGV" in life.words()
        assert "Traceback" not in life.words()
    finally:
        life.kill()
    one_active_model(storage, MODEL, {f"{MODEL}@1.0.0"})


def test_a_model_that_hangs_is_ended_after_its_time_and_refused(tmp_path):
    """A real model that counts to 2**60. The agent allows 60 s; here it is six."""
    path = tmp_path / "hanging.edgeml"
    digest = hanging(path, "9.0.0")
    forkserver = ForkServer(installed_preload())
    supervisor = Supervisor(forkserver)
    try:
        worker = supervisor.load(path, digest, WorkerLimits(load_timeout_s=GOLDEN_TIMEOUT_S))
        began = time.monotonic()
        with pytest.raises(BackendError, match="did not answer within 6 s and was killed"):
            worker.golden()
        assert time.monotonic() - began < GOLDEN_TIMEOUT_S * 5
        assert worker.wait(60), "the process is still there"
        worker.stop()
    finally:
        supervisor.close()
        forkserver.close()
