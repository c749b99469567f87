"""Real workers: how they answer, hang, crash and end, and that the supervisor stays small."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from agent.batch import Rules
from agent.ipc import TensorBytes
from agent.sensors import Sensors
from agent.supervisor import Supervisor, WorkerLimits, check_request, installed_preload
from edgeml.errors import BackendError, BudgetError, ConfigError, DigestMismatchError, ManifestError
from edgeml.tensors import DType, TensorSpec

from ..waiting import wait_for

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
PATIENT = WorkerLimits(request_timeout_s=30)
WAITING_MAX = Rules().waiting_max
SUPERVISE = """
import sys
from pathlib import Path
from agent.ipc import TensorBytes
from agent.supervisor import Supervisor
from edgeml.tensors import DType
supervisor = Supervisor()
worker = supervisor.load(Path(sys.argv[1]), sys.argv[2])
answer = worker.infer([TensorBytes(DType.FLOAT32, (1, 4), bytes(16))])
assert len(answer.outputs[0].data) == 12
worker.golden(), worker.take()
print(worker.pid, *{name.partition('.')[0] for name in sys.modules}, flush=True)
"""


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_worker_answers_proves_itself_and_counts(worker, ask):
    answer = worker.infer(ask(1.0))
    assert answer.predicted in range(3)
    assert answer.outputs[0].shape == (1, 3)
    assert worker.golden().passed
    taken = worker.take()
    assert taken.sketch.rows == 1
    assert taken.memory_bytes > 10 << 20
    assert worker.memory_bytes() > 10 << 20
    assert worker.manifest.release == "sample@1.0.0"
    assert worker.load_ms < 10_000


def test_a_worker_has_its_name_its_place_before_the_oom_killer_and_no_foreign_descriptors(worker):
    proc = Path("/proc") / str(worker.pid)
    assert (proc / "comm").read_text().strip() == "edgeml-worker"
    score = int((proc / "oom_score_adj").read_text())
    assert score >= 500
    targets = [str(link.readlink()) for link in (proc / "fd").iterdir() if int(link.name) > 2]
    # What it shares with the supervisor is mapped in three pieces, and Python keeps a descriptor for each.
    kinds = sorted(target.partition(":")[0] for target in targets)
    assert kinds == ["/memfd"] * 3 + ["pipe", "socket"]


def test_a_tiny_models_worker_has_at_most_20_megabytes_of_its_own(worker, ask):
    worker.infer(ask())
    assert Sensors().memory(worker.pid).uss_bytes <= 20_000_000


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_worker_that_dies_is_noticed_at_once_and_says_of_what(supervisor, sample, ask, number):
    worker = supervisor.load(*sample, PATIENT)
    worker.infer(ask())
    os.kill(worker.pid, number)
    started_s = time.monotonic()
    with pytest.raises(BackendError, match=f"the worker died of {number.name}") as caught:
        worker.infer(ask())
    assert time.monotonic() - started_s < PATIENT.request_timeout_s / 2
    assert ("memory" in caught.value.hint) == (number is signal.SIGKILL)
    assert not worker.alive
    assert worker.memory_bytes() == 0
    with pytest.raises(BackendError, match="died of"):
        worker.take()


def test_a_worker_that_dies_while_it_answers_is_noticed_at_once(supervisor, sample, ask):
    worker = supervisor.load(*sample, PATIENT)
    worker.infer(ask())
    os.kill(worker.pid, signal.SIGSTOP)
    killer = threading.Timer(0.1, os.kill, (worker.pid, signal.SIGKILL))
    killer.start()
    started_s = time.monotonic()
    with pytest.raises(BackendError, match="SIGKILL"):
        worker.infer(ask())
    assert time.monotonic() - started_s < PATIENT.request_timeout_s / 2
    killer.join()


def test_a_worker_that_hangs_is_killed_after_its_time(worker, ask, limits):
    worker.infer(ask())
    os.kill(worker.pid, signal.SIGSTOP)
    started_s = time.monotonic()
    with pytest.raises(BackendError, match="did not answer within 2 s and was killed"):
        worker.infer(ask())
    assert limits.request_timeout_s <= time.monotonic() - started_s < limits.request_timeout_s + 10
    wait_for(lambda: gone(worker.pid), "it to go")
    assert not worker.alive


def test_requests_that_do_not_fit_never_reach_the_worker(worker, ask):
    os.kill(worker.pid, signal.SIGSTOP)  # whatever reached it would time out
    with pytest.raises(ConfigError, match="0 inputs given"):
        worker.infer([])
    with pytest.raises(ConfigError, match="x is float64"):
        worker.infer([TensorBytes(DType.FLOAT64, (1, 4), bytes(32))])
    with pytest.raises(ConfigError, match=r"x has shape \[1, 5\]"):
        worker.infer([TensorBytes(DType.FLOAT32, (1, 5), bytes(20))])
    os.kill(worker.pid, signal.SIGCONT)
    assert worker.infer(ask()).predicted is not None
    with pytest.raises(ConfigError, match="its shape needs 16"):
        worker.infer([TensorBytes(DType.FLOAT32, (1, 4), bytes(12))])
    assert worker.infer(ask()).predicted is not None


@pytest.mark.parametrize(
    ("shape", "stated", "fits"),
    [
        ((1, 4), (-1, 4), True),
        ((1, 4), (1, 4), True),
        ((2, 4), (1, 4), False),
        ((0, 4), (-1, 4), False),
        ((1, 4, 1), (-1, 4), False),
        ((), (), True),
        ((-1, 4), (-1, 4), False),
    ],
)
def test_shapes_fit_where_the_model_leaves_them_free(shape, stated, fits):
    size = 4
    for dimension in shape:
        size *= dimension
    tensors = [TensorBytes(DType.FLOAT32, shape, bytes(max(size, 0)))]
    specs = [TensorSpec("x", DType.FLOAT32, stated)]
    if fits:
        check_request(tensors, specs)
    else:
        with pytest.raises(ConfigError):
            check_request(tensors, specs)


def test_several_threads_share_a_worker_and_each_gets_its_own_answer(worker, ask):
    expected = {value: worker.infer(ask(value)).outputs for value in (1.0, 2.0, 3.0, 4.0)}
    wrong = []

    def run(value):
        wrong.extend(1 for _ in range(200) if worker.infer(ask(value)).outputs != expected[value])

    threads = [threading.Thread(target=run, args=(value,)) for value in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert worker.take().sketch.rows == 4 + 800


def test_more_requests_than_may_wait_are_turned_away(worker, ask):
    worker.infer(ask())
    os.kill(worker.pid, signal.SIGSTOP)
    outcomes = []

    def run():
        try:
            outcomes.append(worker.infer(ask()))
        except (BudgetError, BackendError) as error:
            outcomes.append(error)

    threads = [threading.Thread(target=run) for _ in range(WAITING_MAX + 5)]
    for thread in threads:
        thread.start()
    deadline_s = time.monotonic() + 1.6
    while len(outcomes) < 4 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGCONT)
    for thread in threads:
        thread.join()
    refused = [one for one in outcomes if isinstance(one, BudgetError)]
    assert len(refused) == 4
    assert (refused[0].budget, refused[0].unit) == (WAITING_MAX, "requests")
    assert not [one for one in outcomes if isinstance(one, BackendError)]


def test_counts_are_not_waited_for_for_ever_and_stay_where_they_are(supervisor, sample, ask):
    worker = supervisor.load(*sample, WorkerLimits(request_timeout_s=0.3))
    worker.infer(ask())
    with worker._turn, pytest.raises(BudgetError, match=r"was busy for 0\.3 s"):
        worker.take()
    assert worker.take().sketch.rows == 1


def test_a_changed_bundle_is_refused_and_leaves_no_process(supervisor, sample, limits, tmp_path):
    data = bytearray(sample[0].read_bytes())
    data[-10] ^= 1
    path = tmp_path / "changed.edgeml"
    path.write_bytes(data)
    before = descendants()
    with pytest.raises(DigestMismatchError) as caught:
        supervisor.load(path, sample[1], limits)
    assert "signed metadata" in caught.value.message
    assert descendants() == before


def descendants():
    """Workers of this process' forkserver."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().strip() != "edgeml-worker":
                continue
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if int(Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def test_a_stopped_worker_is_gone_and_says_so(worker, ask):
    worker.stop()
    wait_for(lambda: gone(worker.pid), "it to go")
    worker.stop()
    with pytest.raises(BackendError, match="was stopped"):
        worker.infer(ask())


def test_stopping_waits_for_the_request_in_flight_but_not_for_ever(supervisor, sample, ask):
    worker = supervisor.load(*sample, PATIENT)
    worker.infer(ask())
    os.kill(worker.pid, signal.SIGSTOP)
    failed = []

    def run():
        try:
            worker.infer(ask())
        except BackendError as error:
            failed.append(error.message)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.1)
    started_s = time.monotonic()
    worker.stop(timeout_s=0.3)
    thread.join()
    assert time.monotonic() - started_s < PATIENT.request_timeout_s / 2
    assert failed == ["the worker was stopped while it answered"]


def test_garbage_from_a_worker_gets_it_killed(worker, ask):
    real = worker._child._channel.receive

    def garbled(_timeout_s):
        real(_timeout_s)
        raise ManifestError("not a frame")

    worker._child._channel.receive = garbled
    with pytest.raises(BackendError, match="said something that is no answer"):
        worker.infer(ask())
    wait_for(lambda: gone(worker.pid), "it to go")


def test_closing_the_supervisor_stops_its_workers(forkserver, sample, limits):
    supervisor = Supervisor(forkserver)
    workers = [supervisor.load(*sample, limits) for _ in range(2)]
    supervisor.close()
    wait_for(lambda: all(gone(worker.pid) for worker in workers), "the workers to go")


def run_supervisor(sample, *, more="", main=None):
    path, digest = sample
    command = [sys.executable, *(main or ("-c", SUPERVISE + more)), str(path), digest]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_the_supervisor_loads_neither_numpy_nor_a_runtime_and_exits_without_a_word(sample):
    process = run_supervisor(sample, more="supervisor.close()")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    worker, *modules = out.split()
    assert {"numpy", "onnxruntime", "ai_edge_litert"} & set(modules) == set()
    wait_for(lambda: gone(int(worker)), "it to go")


@pytest.mark.parametrize("start", ["a console script", "standard input"])
def test_workers_start_whatever_the_main_module_is(sample, tmp_path, start):
    """A console script has no suffix and must not be run again in the worker; standard input is no file at all."""
    guarded = 'print("main runs", flush=True)\n' + SUPERVISE + "supervisor.close()\n"
    if start == "a console script":
        script = tmp_path / "edgeml-agent"
        script.write_text(guarded)
        process = run_supervisor(sample, main=(str(script),))
        out, err = process.communicate(timeout=60)
    else:
        process = run_supervisor(sample, main=("-",))
        out, err = process.communicate(guarded, timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out.count("main runs") == 1


@pytest.mark.parametrize("hangs", [False, True], ids=["idle", "hanging in native code"])
def test_workers_and_forkserver_die_with_a_killed_supervisor(sample, hangs):
    process = run_supervisor(sample, more="sys.stdin.read()")
    assert select.select([process.stdout], [], [], 30)[0]
    worker = int(process.stdout.readline().split()[0])
    forkserver = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    if hangs:
        os.kill(worker, signal.SIGSTOP)
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: gone(worker), "it to go")
    wait_for(lambda: gone(forkserver), "it to go")


def test_the_runtime_that_is_installed_is_imported_before_workers_are_forked():
    modules = installed_preload()
    assert modules[0] == "numpy"
    assert modules[1] in {"onnxruntime", "ai_edge_litert.interpreter", "tflite_runtime.interpreter"}
