"""What workers take, read from real processes; and to what they are held."""

import os
import subprocess
import sys

import pytest

from agent.confinement import NICE, Confinement, chosen_cpus
from agent.sensors import Sensors
from agent.usage import MOVED_BYTES, SMOOTH_S, Reading, UsageMeter
from edgeml.ids import ModelName

MIB = 1 << 20
A, B = ModelName("a"), ModelName("b")
HOLDS = """
import sys
held = []
for line in sys.stdin:
    count = int(line)
    held = [b"x" * count] if count else []
    print("done", flush=True)
"""


class Holder:
    """A real process that takes as much memory as it is told."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self.take(0)

    def take(self, count):
        self.process.stdin.write(f"{count}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def holder():
    made = Holder()
    yield made
    made.end()


@pytest.mark.processes
def test_what_a_process_takes_and_gives_back_is_seen_at_once(holder):
    meter = UsageMeter(Sensors())
    before = meter.read({A: holder.pid}, 0, 0.0)[A].memory_bytes
    assert 0 < before < 30 * MIB
    holder.take(50 * MIB)
    during = meter.read({A: holder.pid}, 0, 1.0)[A].memory_bytes
    assert 50 * MIB <= during - before < 60 * MIB
    holder.take(0)
    after = meter.read({A: holder.pid}, 0, 2.0)[A].memory_bytes
    assert after < before + 5 * MIB


@pytest.mark.processes
def test_a_small_step_is_counted_without_looking_into_the_process(holder):
    looked = []

    class Counting(Sensors):
        def memory(self, pid):
            looked.append(pid)
            return super().memory(pid)

    meter = UsageMeter(Counting())
    before = meter.read({A: holder.pid}, 0, 0.0)[A].memory_bytes
    holder.take(MOVED_BYTES // 2)
    assert meter.read({A: holder.pid}, 0, 1.0)[A].memory_bytes > before
    assert looked == [holder.pid]


@pytest.mark.processes
def test_a_process_that_is_gone_takes_nothing(holder):
    meter = UsageMeter(Sensors())
    meter.read({A: holder.pid}, 0, 0.0)
    holder.end()
    assert meter.read({A: holder.pid}, 0, 1.0) == {A: Reading(0, 0.0)}
    assert meter.read({}, 0, 2.0) == {}


def test_processor_time_is_averaged_and_a_new_process_starts_anew(tmp_path):
    def write(pid, seconds):
        ticks = os.sysconf("SC_CLK_TCK")
        (tmp_path / str(pid)).mkdir(exist_ok=True)
        (tmp_path / str(pid) / "stat").write_text(
            f"{pid} (w) R 1 1 1 0 -1 0 0 0 0 0 {seconds * ticks} 0 0 0 20 0\n"
        )
        (tmp_path / str(pid) / "status").write_text("VmRSS:\t 1024 kB\n")

    meter = UsageMeter(Sensors(tmp_path))
    readings = []
    for second in range(int(10 * SMOOTH_S)):
        write(7, 2 * second)
        readings.append(meter.read({A: 7}, 0, float(second))[A].cpu_cores)
    assert readings[0] == 0.0
    assert readings == sorted(readings)
    assert 0.2 < readings[1] < 0.5
    assert readings[-1] == pytest.approx(2.0, abs=0.01)
    write(8, 500)
    assert meter.read({A: 8}, 0, 1000.0)[A].cpu_cores == 0.0


def test_a_kernel_that_does_not_tell_own_from_shared_gives_the_difference(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text("7 (w) R 1 1 1 0 -1 0 0 0 0 0 1 1 0 0 20 0\n")
    (tmp_path / "7/status").write_text("VmRSS:\t 61440 kB\n")
    assert UsageMeter(Sensors(tmp_path)).read({A: 7}, 40 * MIB, 0.0)[A].memory_bytes == 20 * MIB


@pytest.mark.processes
def test_a_worker_is_held_to_its_processors_and_goes_behind_other_work(holder):
    allowed = os.sched_getaffinity(0)
    Confinement(1.0, None).place(holder.pid, A, None)
    assert os.getpriority(os.PRIO_PROCESS, holder.pid) == max(os.getpriority(os.PRIO_PROCESS, 0), NICE)
    if len(allowed) > 1:
        assert os.sched_getaffinity(holder.pid) == {max(allowed)}
    assert os.sched_getaffinity(0) == allowed


@pytest.mark.processes
def test_what_cannot_be_set_is_said_once(holder, caplog):
    class Refusing:
        def place(self, pid, model, memory_bytes):
            raise PermissionError(13, "Permission denied")

    confinement = Confinement(None, Refusing())
    confinement.place(holder.pid, A, None)
    confinement.place(holder.pid, A, None)
    assert [one.getMessage() for one in caplog.records] == [
        "workers cannot be put into a control group (Permission denied); they are only watched"
    ]


@pytest.mark.processes
def test_a_worker_that_is_gone_is_no_complaint(holder, caplog):
    holder.end()
    Confinement(1.0, None).place(holder.pid, A, None)
    assert [one for one in caplog.records if one.levelname == "WARNING"] == []


@pytest.mark.parametrize(
    ("cores", "allowed", "expected"),
    [
        (None, {0, 1}, None),
        (0.5, {0, 1}, {1}),
        (1.0, {0, 1, 2, 3}, {3}),
        (2.5, {0, 1, 2, 3}, {1, 2, 3}),
        (4.0, {0, 1, 2, 3}, None),
        (1.0, {5}, None),
    ],
)
def test_workers_get_the_last_processors(cores, allowed, expected):
    assert chosen_cpus(cores, allowed) == expected


@pytest.mark.processes
def test_the_kernel_takes_a_worker_before_its_supervisor(worker):
    sensors = Sensors()
    assert sensors.oom_score_adj(worker.pid) > sensors.oom_score_adj(os.getpid())


@pytest.mark.processes
def test_the_kernel_takes_a_worker_first_also_where_the_supervisor_is_no_favourite(sample):
    """As under a service manager, or in a container, that has raised the agent's own value above what a worker says."""
    code = """
import os, sys
from pathlib import Path
Path("/proc/self/oom_score_adj").write_text("700")
from agent.supervisor import Supervisor
from agent.sensors import Sensors
supervisor = Supervisor()
worker = supervisor.load(Path(sys.argv[1]), sys.argv[2])
print(Sensors().oom_score_adj(os.getpid()), Sensors().oom_score_adj(worker.pid))
supervisor.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(sample[0]), sample[1]],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    own, workers = map(int, done.stdout.split())
    assert (own, workers) == (700, 1000)
