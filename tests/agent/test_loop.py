"""Asking from an event loop: the same line as threads, and a worker's socket that is never left in the middle."""

import asyncio
import os
import signal
import threading
import time

import httpx
import numpy as np
import pytest

from agent.answering import Answering
from agent.batch import Rules
from agent.ipc import TensorBytes
from agent.line import LateError, OverloadError
from agent.roster import Roster
from agent.server import Server
from agent.supervisor import WorkerLimits
from agent.windows import Windows
from edgeml.bundle import Bundle
from edgeml.clock import SystemClock
from edgeml.errors import BackendError, EdgemlError
from edgeml.ids import ModelName
from edgeml.runtime import open_session
from edgeml.tensors import DType

pytestmark = pytest.mark.processes


def request(value):
    return (TensorBytes(DType.FLOAT32, (1, 4), np.full((1, 4), value, np.float32).tobytes()),)


def scores(answer):
    return np.frombuffer(answer.outputs[0].data, np.float32)


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request):
    """Run a coroutine in a loop of either kind: the second is there where the [serve] extra has it."""
    return pytest.importorskip(request.param).run


@pytest.fixture(scope="module")
def bare(sample):
    with Bundle(sample[0]) as bundle:
        session = open_session(bundle.model(), bundle.manifest.runtime)
    return lambda value: session.run([np.full((1, 4), value, np.float32)])[0].ravel()


async def attempted(coroutine):
    try:
        return await coroutine
    except EdgemlError as error:
        return error


def test_coroutines_and_threads_in_one_line_each_get_their_own_answer(run, supervisor, sample, bare):
    worker = supervisor.load(*sample, WorkerLimits(line=Rules(waiting_max=64)))
    wrong, counted = [], []

    def in_thread(value):
        for turn in range(50):
            if not np.array_equal(scores(worker.infer(request(value + turn))), bare(value + turn)):
                wrong.append(value)
            counted.append(1)

    async def in_loop(value):
        for turn in range(50):
            if not np.array_equal(
                scores(await worker.infer_in_loop(request(value + turn))), bare(value + turn)
            ):
                wrong.append(value)
            counted.append(1)

    async def all_in_loop():
        await asyncio.gather(*(in_loop(100.0 * i) for i in range(6)))

    stop = threading.Event()

    def meddle():
        # What else speaks with the worker, meanwhile.
        while not stop.wait(0.005):
            assert worker.golden().passed

    threads = [threading.Thread(target=in_thread, args=(-100.0 * i,)) for i in range(1, 5)]
    meddler = threading.Thread(target=meddle)
    for thread in (*threads, meddler):
        thread.start()
    run(all_in_loop())
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    stop.set()
    meddler.join()
    assert wrong == []
    assert worker.take().sketch.rows == len(counted) == 500


def test_a_loop_goes_on_while_the_worker_takes_its_time(run, worker):
    async def scenario():
        os.kill(worker.pid, signal.SIGSTOP)
        asking = asyncio.create_task(worker.infer_in_loop(request(1.0)))
        started_s = time.monotonic()
        for _ in range(20):
            await asyncio.sleep(0.005)
        took_s = time.monotonic() - started_s
        assert not asking.done()
        os.kill(worker.pid, signal.SIGCONT)
        return took_s, await asking

    took_s, answer = run(scenario())
    assert took_s < 0.9
    assert answer.predicted is not None


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_death_in_the_middle_reaches_everyone_in_the_line(run, supervisor, sample, number):
    worker = supervisor.load(*sample, WorkerLimits(request_timeout_s=5))

    async def scenario():
        await worker.infer_in_loop(request(0.0))
        os.kill(worker.pid, signal.SIGSTOP)
        asking = [asyncio.create_task(attempted(worker.infer_in_loop(request(i)))) for i in range(5)]
        await asyncio.sleep(0.05)
        os.kill(worker.pid, number)
        os.kill(worker.pid, signal.SIGCONT)
        return await asyncio.wait_for(asyncio.gather(*asking), 4)

    outcomes = run(scenario())
    assert all(isinstance(one, BackendError) and number.name in one.message for one in outcomes)
    assert not worker._line._led


def test_a_worker_that_hangs_is_killed_after_its_time(run, worker, limits):
    async def scenario():
        os.kill(worker.pid, signal.SIGSTOP)
        started_s = time.monotonic()
        outcome = await attempted(worker.infer_in_loop(request(1.0)))
        return outcome, time.monotonic() - started_s

    outcome, took_s = run(scenario())
    assert isinstance(outcome, BackendError)
    assert "was killed" in outcome.message
    assert limits.request_timeout_s <= took_s < limits.request_timeout_s + 1
    assert not worker.alive


def test_a_request_that_is_given_up_leaves_nothing_behind_for_the_next(run, worker, bare):
    async def scenario():
        os.kill(worker.pid, signal.SIGSTOP)
        asking = [asyncio.create_task(worker.infer_in_loop(request(i))) for i in range(4)]
        await asyncio.sleep(0.05)
        threading.Timer(0.1, os.kill, (worker.pid, signal.SIGCONT)).start()
        # The one that is under way, and one that waits.
        asking[0].cancel()
        asking[2].cancel()
        return await asyncio.gather(*asking, return_exceptions=True)

    outcomes = run(scenario())
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert isinstance(outcomes[2], asyncio.CancelledError)
    for value in (1, 3):
        np.testing.assert_array_equal(scores(outcomes[value]), bare(value))
    np.testing.assert_array_equal(scores(worker.infer(request(9.0))), bare(9.0))
    assert worker.take().sketch.rows == 4


def test_one_request_after_the_other_keeps_nobody_out_for_long(run, supervisor, sample):
    worker = supervisor.load(*sample, WorkerLimits(line=Rules(waiting_max=64)))
    answered, waited = [], []
    stop = threading.Event()

    async def without_end(value):
        while not stop.is_set():
            await worker.infer_in_loop(request(value))
            answered.append(value)

    async def scenario():
        await asyncio.gather(*(without_end(float(i)) for i in range(6)))

    def look():
        # As at the end of each window.
        while len(answered) < 100:
            time.sleep(0.001)
        for _ in range(20):
            before = len(answered)
            worker.take()
            waited.append(len(answered) - before)
        stop.set()

    looking = threading.Thread(target=look)
    looking.start()
    run(scenario())
    looking.join(60)
    assert len(waited) == 20
    # A handful; without order it was whatever luck gave.
    assert max(waited) <= 50


def test_what_nobody_foresaw_reaches_the_one_whose_request_it_was(run, supervisor, sample, bare, monkeypatch):
    worker = supervisor.load(*sample)
    real = worker._child.begin

    def begin(kind, parts, timeout_s):
        if np.float32(77.7).tobytes() in b"".join(parts):
            raise ZeroDivisionError
        return real(kind, parts, timeout_s)

    async def scenario():
        monkeypatch.setattr(worker._child, "begin", begin)
        asking = [worker.infer_in_loop(request(value)) for value in (0.0, 1.0, 77.7, 3.0, 4.0)]
        return await asyncio.gather(*asking, return_exceptions=True)

    outcomes = run(scenario())
    assert isinstance(outcomes[2], ZeroDivisionError)
    for value in (0, 1, 3, 4):
        np.testing.assert_array_equal(scores(outcomes[value]), bare(value))


def test_deadlines_and_the_bound_hold_in_a_loop(run, supervisor, sample, bare):
    worker = supervisor.load(*sample, WorkerLimits(request_timeout_s=5, line=Rules(waiting_max=3)))

    async def scenario():
        await worker.infer_in_loop(request(0.0))
        os.kill(worker.pid, signal.SIGSTOP)
        now_s = time.monotonic()
        asking = [
            asyncio.create_task(attempted(worker.infer_in_loop(request(i), now_s + after_s)))
            for i, after_s in enumerate((9.0, 0.05, 9.0, 0.05, 9.0))
        ]
        await asyncio.sleep(0.2)
        os.kill(worker.pid, signal.SIGCONT)
        late = await attempted(worker.infer_in_loop(request(9.0), time.monotonic() - 1))
        return [*(await asyncio.gather(*asking)), late]

    outcomes = run(scenario())
    # Not Answer but an error: late at 1 and 3, one too many at 4, and late from the start.
    assert [type(one) for one in outcomes if isinstance(one, EdgemlError)] == [
        LateError, LateError, OverloadError, LateError,
    ]  # fmt: skip
    np.testing.assert_array_equal(scores(outcomes[2]), bare(2))
    assert worker.take().sketch.rows == 3


def test_batches_go_together_from_a_loop_too(run, supervisor, sample, bare):
    worker = supervisor.load(*sample, WorkerLimits(line=Rules(64, 8, 0.02)))
    calls = []
    real = worker._line._call
    worker._line._call = lambda tensors: (calls.append(tensors[0].shape[0]), real(tensors))[1]

    async def scenario():
        return await asyncio.gather(*(worker.infer_in_loop(request(i)) for i in range(24)))

    outcomes = run(scenario())
    for value, answer in enumerate(outcomes):
        np.testing.assert_allclose(scores(answer), bare(value), rtol=1e-5, atol=1e-4)
    assert sum(calls) == 24
    assert max(calls) == 8


def test_many_clients_over_http_small_and_large_get_their_own_answers(supervisor, sample, bare):
    roster = Roster(supervisor)
    serving = roster.seat(ModelName("sample"))
    serving.swap(supervisor.load(*sample, WorkerLimits(line=Rules(waiting_max=64))))
    server = Server(Answering(roster, Windows(60.0), SystemClock()), "127.0.0.1:0")
    server.start()
    wrong = []

    def client(value):
        with httpx.Client(base_url=server.url, timeout=20) as asking:
            # One row goes through the loop; 4000 rows of JSON are longer than it reads, and go through a thread.
            for rows in [1] * 15 + [4000] + [1] * 5:
                body = {"name": "x", "shape": [rows, 4], "datatype": "FP32", "data": [value] * (4 * rows)}
                answer = asking.post("/v2/models/sample/infer", json={"inputs": [body]}).json()
                observed = np.reshape(answer["outputs"][0]["data"], (rows, 3))
                if not np.allclose(observed, bare(value), rtol=1e-4, atol=1e-4):
                    wrong.append(value)

    threads = [threading.Thread(target=client, args=(i + 0.123456789,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert serving.active.take().sketch.rows == 8 * (20 + 4000)
    server.stop()
    serving.close()
