"""Threads in a line: none is lost, none is answered twice or with another's answer, whatever happens ahead of it."""

import os
import random
import signal
import threading
import time

import httpx
import numpy as np
import pytest

from agent.answering import Answering
from agent.batch import Rules
from agent.ipc import Answer, TensorBytes
from agent.line import LateError, Line, OverloadError
from agent.roster import Roster
from agent.server import Server
from agent.supervisor import WorkerLimits
from agent.windows import Windows
from edgeml.clock import SystemClock
from edgeml.errors import BackendError, EdgemlError
from edgeml.ids import ModelName
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, Task
from edgeml.tensors import DType, TensorSpec

from ..waiting import PATIENCE_S, wait_for

SPEC = TensorSpec("x", DType.INT64, (-1, 1))
MANIFEST = Manifest(
    "double", "1.0.0", "v", RuntimeFamily.ONNX, ("p",), (SPEC,), (SPEC,), (),
    Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", "0" * 64), task=Task.CLASSIFICATION,
)  # fmt: skip
TOGETHER = Rules(waiting_max=64, batch_max=4, window_s=0.002)
ONE_BY_ONE = Rules(waiting_max=64)


def ask_for(*values):
    return (TensorBytes(DType.INT64, (len(values), 1), np.array(values, np.int64).tobytes()),)


def numbers(tensors):
    return np.frombuffer(tensors[0].data, np.int64).tolist()


class Doubler:
    """A worker that doubles, notes what it was asked, and may be told to wait or to refuse."""

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.poison = None
        self._inside = threading.Lock()

    def __call__(self, tensors):
        assert self._inside.acquire(blocking=False), "two calls at once"
        try:
            values = numbers(tensors)
            self.calls.append(values)
            self.entered.set()
            self.gate.wait(60)
            if self.poison in values:
                raise BackendError("the model refuses this")
            return Answer(ask_for(*(2 * value for value in values)), 1.0, None)
        finally:
            self._inside.release()


@pytest.fixture
def doubler():
    return Doubler()


def run_all(functions):
    outcomes = [None] * len(functions)

    def run(i):
        try:
            outcomes[i] = functions[i]()
        except EdgemlError as error:
            outcomes[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    return threads, outcomes


def joined(threads):
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive(), "a request was lost"


def held(line, doubler):
    """Keep the worker busy with one request; return its thread."""
    doubler.gate.clear()
    doubler.entered.clear()
    threads, _ = run_all([lambda: line.ask(ask_for(-1))])
    assert doubler.entered.wait(PATIENCE_S)
    return threads


def wait_until_behind(line, count):
    wait_for(lambda: len(line._behind) == count, f"{count} behind")


@pytest.mark.parametrize("rules", [ONE_BY_ONE, TOGETHER], ids=["one by one", "together"])
def test_under_load_every_request_gets_its_own_answer_once(doubler, rules):
    line = Line(MANIFEST, rules, doubler)
    generator = random.Random(1)
    plans = [[generator.randrange(1, 4) for _ in range(60)] for _ in range(12)]

    def client(index):
        def run():
            for turn, rows in enumerate(plans[index]):
                values = [index * 1_000_000 + turn * 100 + row for row in range(rows)]
                assert numbers(line.ask(ask_for(*values)).outputs) == [2 * one for one in values]
                if turn % 7 == index % 7:
                    time.sleep(0.001)
            return "done"

        return run

    threads, outcomes = run_all([client(i) for i in range(len(plans))])
    joined(threads)
    assert outcomes == ["done"] * len(plans)
    seen = [value for call in doubler.calls for value in call]
    assert len(seen) == len(set(seen)) == sum(map(sum, plans))
    largest = max(map(len, doubler.calls))
    assert largest <= 4
    assert (largest > 3) is (rules is TOGETHER)
    assert not line._behind
    assert not line._led


def test_requests_are_answered_in_the_order_in_which_they_came(doubler):
    line = Line(MANIFEST, ONE_BY_ONE, doubler)
    threads = held(line, doubler)
    for i in range(10):
        threads += run_all([lambda i=i: line.ask(ask_for(i))])[0]
        wait_until_behind(line, i + 1)
    doubler.gate.set()
    joined(threads)
    assert doubler.calls == [[-1], *([i] for i in range(10))]


def test_those_who_waited_go_together_without_being_held_back_for_more(doubler):
    line = Line(MANIFEST, Rules(batch_max=4, window_s=2.0), doubler)
    threads = held(line, doubler)
    for i in range(8):
        threads += run_all([lambda i=i: line.ask(ask_for(i))])[0]
        wait_until_behind(line, i + 1)
    started_s = time.monotonic()
    doubler.gate.set()
    joined(threads)
    assert doubler.calls == [[-1], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert time.monotonic() - started_s < 1.6


@pytest.mark.parametrize("rules", [ONE_BY_ONE, TOGETHER], ids=["one by one", "together"])
def test_whoever_is_late_is_told_in_time_and_never_run(doubler, rules):
    line = Line(MANIFEST, rules, doubler)
    threads = held(line, doubler)
    started_s = time.monotonic()
    with pytest.raises(LateError, match="no time"):
        line.ask(ask_for(7), started_s + 0.05)
    assert 0.05 <= time.monotonic() - started_s < 2
    with pytest.raises(LateError):
        line.ask(ask_for(8), started_s - 1)
    patient, outcomes = run_all([lambda: line.ask(ask_for(9), time.monotonic() + 10)])
    wait_until_behind(line, 1)
    doubler.gate.set()
    joined([*threads, *patient])
    assert numbers(outcomes[0].outputs) == [18]
    with pytest.raises(LateError):
        line.ask(ask_for(10), time.monotonic() - 1)
    assert doubler.calls == [[-1], [9]]


def test_deadlines_under_load_leave_every_request_answered_or_late_and_only_the_first_run(doubler):
    line = Line(MANIFEST, TOGETHER, doubler)
    generator = random.Random(2)
    deadlines = [[generator.random() / 300 for _ in range(50)] for _ in range(8)]

    def client(index):
        def run():
            answered = []
            for turn, timeout_s in enumerate(deadlines[index]):
                value = index * 1000 + turn
                try:
                    answer = line.ask(ask_for(value), time.monotonic() + timeout_s)
                except LateError:
                    continue
                assert numbers(answer.outputs) == [2 * value]
                answered.append(value)
            return answered

        return run

    threads, outcomes = run_all([client(i) for i in range(8)])
    joined(threads)
    answered = [value for one in outcomes for value in one]
    assert sorted(answered) == sorted(value for call in doubler.calls for value in call)
    assert not line._behind


def test_more_than_may_wait_are_turned_away_with_a_time_to_come_again(doubler):
    line = Line(MANIFEST, Rules(waiting_max=2), doubler)
    threads = held(line, doubler)
    line._call_s = 1.5
    waiting, _ = run_all([lambda: line.ask(ask_for(1)), lambda: line.ask(ask_for(2))])
    wait_until_behind(line, 2)
    with pytest.raises(OverloadError, match="2 requests wait for double@") as caught:
        line.ask(ask_for(3))
    assert caught.value.retry_after_s == 5
    assert (caught.value.budget, caught.value.observed, caught.value.unit) == (2, 3, "requests")
    doubler.gate.set()
    joined([*threads, *waiting])


def test_one_bad_request_in_a_batch_fails_alone(doubler):
    line = Line(MANIFEST, TOGETHER, doubler)
    doubler.poison = 2
    threads = held(line, doubler)
    asking = [lambda i=i: line.ask(ask_for(i)) for i in range(4)]
    waiting, outcomes = run_all(asking)
    wait_until_behind(line, 4)
    doubler.gate.set()
    joined([*threads, *waiting])
    assert [type(one) for one in outcomes] == [Answer, Answer, BackendError, Answer]
    assert [numbers(outcomes[i].outputs) for i in (0, 1, 3)] == [[0], [2], [6]]


def test_a_model_that_does_not_give_a_row_for_each_sample_is_not_batched_any_more(doubler):
    def summing(tensors):
        doubler(tensors)
        return Answer(ask_for(sum(numbers(tensors))), 1.0, None)

    line = Line(MANIFEST, TOGETHER, summing)
    for turn in range(2):
        threads = held(line, doubler)
        waiting, outcomes = run_all([lambda: line.ask(ask_for(5)), lambda: line.ask(ask_for(6))])
        wait_until_behind(line, 2)
        doubler.gate.set()
        joined([*threads, *waiting])
        assert sorted(numbers(one.outputs) for one in outcomes) == [[5], [6]]
        assert max(map(len, doubler.calls)) == 2 - turn
        doubler.calls.clear()


@pytest.mark.parametrize(
    ("where", "rules"), [("_call", ONE_BY_ONE), ("_gather", TOGETHER), ("_wait", ONE_BY_ONE)],
    ids=["alone", "at the head", "behind"],
)  # fmt: skip
def test_a_thread_that_is_interrupted_keeps_nobody_waiting(doubler, where, rules, monkeypatch):
    line = Line(MANIFEST, rules, doubler)
    threads = held(line, doubler) if where == "_wait" else []

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(line, where, interrupt)
    with pytest.raises(KeyboardInterrupt):
        line.ask(ask_for(1))
    monkeypatch.undo()
    doubler.gate.set()
    joined(threads)
    waiting, outcomes = run_all([lambda: line.ask(ask_for(2))])
    joined(waiting)
    assert numbers(outcomes[0].outputs) == [4]


def test_an_error_that_nobody_foresaw_reaches_its_own_caller_and_frees_the_line():
    def broken(_tensors):
        raise ZeroDivisionError

    line = Line(MANIFEST, TOGETHER, broken)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            line.ask(ask_for(1))
    assert not line._led


@pytest.mark.processes
def test_a_real_worker_answers_batches_as_it_answers_single_samples(supervisor, sample):
    limits = WorkerLimits(line=Rules(waiting_max=64, batch_max=8, window_s=0.005))
    worker = supervisor.load(*sample, limits)
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(1, 4)).astype(np.float32) for _ in range(16)]
    requests = [(TensorBytes(DType.FLOAT32, (1, 4), one.tobytes()),) for one in arrays]
    single = [worker.answer(request) for request in requests]
    worker.take()
    calls = []
    real = worker._line._call
    worker._line._call = lambda tensors: (calls.append(tensors[0].shape[0]), real(tensors))[1]

    def client(index):
        def run():
            return [worker.infer(requests[index]) for _ in range(20)]

        return run

    threads, outcomes = run_all([client(i) for i in range(16)])
    joined(threads)
    for expected, answers in zip(single, outcomes, strict=True):
        for answer in answers:
            assert answer.predicted == expected.predicted
            np.testing.assert_allclose(
                np.frombuffer(answer.outputs[0].data, np.float32),
                np.frombuffer(expected.outputs[0].data, np.float32), rtol=1e-5, atol=1e-6,
            )  # fmt: skip
    assert sum(calls) == 320
    assert max(calls) > 1
    assert worker.take().sketch.rows == 320


@pytest.mark.processes
def test_a_worker_killed_under_a_batch_leaves_no_thread_waiting(supervisor, sample):
    worker = supervisor.load(*sample, WorkerLimits(line=Rules(64, 8, 0.002)))
    request = (TensorBytes(DType.FLOAT32, (1, 4), bytes(16)),)

    def client():
        while True:
            worker.infer(request)

    threads, outcomes = run_all([client] * 12)
    time.sleep(0.1)
    os.kill(worker.pid, signal.SIGKILL)
    joined(threads)
    assert all(isinstance(one, BackendError) and "SIGKILL" in one.message for one in outcomes)


@pytest.mark.processes
def test_over_http_who_is_late_gets_504_and_who_is_too_many_429_with_a_time(supervisor, sample):
    roster = Roster(supervisor)
    serving = roster.seat(ModelName("sample"))
    serving.swap(supervisor.load(*sample, WorkerLimits(request_timeout_s=10, line=Rules(waiting_max=2))))
    server = Server(Answering(roster, Windows(60.0), SystemClock()), "127.0.0.1:0")
    server.start()
    url = server.url + "/v2/models/sample/infer"
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}]}
    hurried = body | {"parameters": {"timeout": 50_000}}
    assert httpx.post(url, json=hurried).status_code == 200
    line = serving.active._line
    os.kill(serving.active.pid, signal.SIGSTOP)
    first, _ = run_all([lambda: httpx.post(url, json=body, timeout=20)])
    wait_for(lambda: line._led, "the first to lead")
    late = httpx.post(url, json=hurried)
    assert late.status_code == 504
    assert "no time for the request" in late.json()["error"]
    waiting, outcomes = run_all([lambda: httpx.post(url, json=body, timeout=20)] * 2)
    wait_until_behind(line, 2)
    line._call_s = 1.0
    refused = httpx.post(url, json=body)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "3")
    os.kill(serving.active.pid, signal.SIGCONT)
    joined([*first, *waiting])
    assert [one.status_code for one in outcomes] == [200, 200]
    negative = httpx.post(url, json=body | {"parameters": {"timeout": -1}})
    assert negative.status_code == 400
    assert serving.active.take().sketch.rows == 4
    server.stop()
    serving.close()
