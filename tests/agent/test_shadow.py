"""The shadow: an even share of requests, never waited for, and what counts as another answer."""

import math
import struct
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.ipc import Answer, TensorBytes
from agent.shadow import Compared, Shadow, agree
from edgeml.errors import BackendError
from edgeml.tensors import DType
from edgeml.testing import sample_bundle


def floats(*values, dtype=DType.FLOAT32):
    code = {DType.FLOAT32: "f", DType.FLOAT64: "d"}[dtype]
    return TensorBytes(dtype, (1, len(values)), struct.pack(f"<{len(values)}{code}", *values))


def answer(*outputs, predicted=None):
    return Answer(outputs, 1.0, predicted)


@pytest.mark.parametrize(
    ("given_", "shadowed", "same"),
    [
        (answer(floats(1, 2), predicted=1), answer(floats(9, 9), predicted=1), True),
        (answer(floats(1, 2), predicted=1), answer(floats(1, 2), predicted=0), False),
        (answer(floats(10.0, 20.0)), answer(floats(10.5, 20.5)), True),
        (answer(floats(10.0, 20.0)), answer(floats(12.0, 22.0)), False),
        (answer(floats(0.0)), answer(floats(0.0)), True),
        (answer(floats(1.0)), answer(floats(math.nan)), False),
        (answer(floats(math.nan, 1.0)), answer(floats(math.nan, 1.0)), True),
        (answer(floats(math.inf)), answer(floats(math.inf)), True),
        (answer(floats(math.nan)), answer(floats(1.0)), False),
        (answer(floats(1.0)), answer(floats(1.0, dtype=DType.FLOAT64)), False),
        (answer(floats(1.0)), answer(floats(1.0, 1.0)), False),
        (answer(floats(1.0)), answer(), False),
        (answer(TensorBytes(DType.INT8, (2,), b"ab")), answer(TensorBytes(DType.INT8, (2,), b"ab")), True),
        (answer(TensorBytes(DType.INT8, (2,), b"ab")), answer(TensorBytes(DType.INT8, (2,), b"ac")), False),
    ],
)
def test_when_two_answers_say_the_same(given_, shadowed, same):
    assert agree(given_, shadowed) is same


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20))
def test_every_answer_agrees_with_itself(values):
    assert agree(answer(floats(*values)), answer(floats(*values)))


class Slow:
    """A worker whose answers the test releases."""

    manifest = None

    def __init__(self):
        self.asked = 0
        self.may_answer = threading.Semaphore(0)

    def infer(self, _tensors):
        self.asked += 1
        assert self.may_answer.acquire(timeout=10)
        return answer(floats(1.0))


def test_nobody_waits_for_a_newcomer_that_is_busy():
    worker = Slow()
    shadow = Shadow(worker, 1.0)
    for _ in range(5):
        shadow.offer((), answer(floats(1.0)))
    worker.may_answer.release()
    shadow.close()
    assert (worker.asked, shadow.counts) == (1, Compared(compared=1, skipped=4))


@pytest.mark.processes
@pytest.mark.parametrize(("share", "expected"), [(1.0, 40), (0.5, 20), (0.1, 4)])
def test_it_is_given_its_share_and_agrees_with_itself(worker, ask, share, expected):
    shadow = Shadow(worker, share)
    given_ = worker.infer(ask())
    for _ in range(40):
        before = shadow.counts
        shadow.offer(ask(), given_)
        while shadow.counts == before and shadow._busy:
            pass
    shadow.close()
    assert shadow.counts == Compared(compared=expected)


@pytest.mark.processes
def test_other_answers_and_a_dead_newcomer_are_counted(supervisor, worker, ask, limits, tmp_path):
    path = tmp_path / "other.edgeml"
    other = supervisor.load(path, sample_bundle(path, "2.0.0", seed=5), limits)
    inputs = [ask(value) for value in (-3.0, -1.0, 0.5, 1.0, 2.0)]
    differ = sum(other.infer(one).predicted != worker.infer(one).predicted for one in inputs)
    shadow = Shadow(other, 1.0)
    for one in inputs:
        given_ = worker.infer(one)
        shadow.offer(one, given_)
        while shadow._busy:
            pass
    assert shadow.counts == Compared(compared=len(inputs), disagreed=differ)
    other.stop()
    shadow.offer(inputs[0], given_)
    shadow.close()
    assert shadow.counts.failed == 1
    assert shadow.counts.disagreement == (differ + 1) / (len(inputs) + 1)
    with pytest.raises(BackendError):
        other.infer(inputs[0])
