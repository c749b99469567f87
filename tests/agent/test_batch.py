"""Decisions about a line: who is late, who goes together, and that what is put together comes apart again."""

import math
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from agent.batch import (
    RETRY_MAX_S,
    Rules,
    Waiting,
    combine,
    highest,
    may_batch,
    plan,
    retry_after_s,
    split,
    tails,
)
from agent.ipc import Answer, TensorBytes
from edgeml.expectation import Expected
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, Task
from edgeml.steps import Processing
from edgeml.tensors import DType, TensorSpec

TIMES = st.floats(0, 10)
WAITING = st.builds(
    Waiting, TIMES, st.just(math.inf) | TIMES, st.integers(1, 6),
    st.sampled_from([((DType.FLOAT32, (4,)),), ((DType.FLOAT32, (5,)),)]),
)  # fmt: skip
RULES = st.builds(Rules, st.just(16), st.integers(1, 12), st.sampled_from([0.0, 0.005, 1.0]))
LINES = st.lists(WAITING, max_size=12).map(lambda line: sorted(line, key=lambda one: one.arrived_s))


def tensor(array):
    return TensorBytes(DType(array.dtype.name), array.shape, array.tobytes())


@given(LINES, TIMES, RULES)
def test_a_plan_keeps_order_limits_and_deadlines_and_always_gets_on(line, now_s, rules):
    decided = plan(line, now_s, rules)
    assert decided.late == tuple(i for i, one in enumerate(line) if one.deadline_s <= now_s)
    rest = [i for i in range(len(line)) if i not in decided.late]
    # Nobody is overtaken, and if there is anybody, somebody goes.
    assert list(decided.taken) == rest[: len(decided.taken)]
    assert bool(decided.taken) is bool(rest)
    rows = sum(line[i].rows for i in decided.taken)
    assert rows <= rules.batch_max or len(decided.taken) == 1
    assert len({line[i].tails for i in decided.taken}) <= 1
    following = rest[len(decided.taken) :]
    if following:
        other = line[following[0]]
        assert other.tails != line[rest[0]].tails or rows + other.rows > rules.batch_max


@given(LINES, TIMES, RULES)
def test_holding_back_is_bounded_useful_and_makes_nobody_late(line, now_s, rules):
    # Nobody arrives in the future.
    now_s = max([now_s, *(one.arrived_s for one in line)])
    decided = plan(line, now_s, rules)
    assert decided.wait_s >= 0
    if decided.wait_s:
        first = line[decided.taken[0]]
        assert now_s + decided.wait_s <= first.arrived_s + rules.window_s + 1e-9
        assert sum(line[i].rows for i in decided.taken) < rules.batch_max
        assert len(decided.taken) + len(decided.late) == len(line)
        assert all(line[i].deadline_s > first.arrived_s + rules.window_s for i in decided.taken)
        later = plan(line, now_s + decided.wait_s + 1e-6, rules)
        assert later.wait_s == 0
    if not rules.window_s:
        assert not decided.wait_s


def test_a_full_batch_and_one_with_a_short_deadline_go_at_once():
    rules = Rules(batch_max=2, window_s=1.0)
    one, short = Waiting(0.0, math.inf, 1), Waiting(0.0, 0.5, 1)
    assert plan([one], 0.1, rules).wait_s == pytest.approx(0.9)
    assert plan([one, one], 0.1, rules).wait_s == 0
    assert plan([short], 0.1, rules).wait_s == 0
    assert plan([Waiting(0.0, math.inf, 5)], 0.1, rules).taken == (0,)


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.lists(st.sampled_from([one.value for one in DType]), min_size=1, max_size=3),
    st.integers(0, 3),
)
def test_what_is_put_together_comes_apart_row_by_row(rows, types, width):
    generator = np.random.default_rng(0)
    requests = [[(100 * generator.normal(size=(n, width, 2))).astype(kind) for kind in types] for n in rows]
    asked = combine([[tensor(one) for one in arrays] for arrays in requests])
    for i, together in enumerate(asked):
        expected = np.concatenate([arrays[i] for arrays in requests])
        assert (together.shape, together.data) == (expected.shape, expected.tobytes())
    answers = split(Answer(asked, 7.0, None), rows, Task.OTHER if hasattr(Task, "OTHER") else list(Task)[-1])
    for arrays, answer in zip(requests, answers, strict=True):
        assert answer.outputs == tuple(map(tensor, arrays))
        assert answer.latency_us == 7.0


@given(
    st.sampled_from(["float16", "float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "int64", "bool"])
    .flatmap(lambda name: hnp.arrays(np.dtype(name), st.tuples(st.just(1), st.integers(1, 8))))
)  # fmt: skip
def test_the_highest_is_numpys(array):
    assert highest(tensor(array)) == int(array.argmax())


def test_nothing_has_no_highest():
    assert highest(TensorBytes(DType.FLOAT32, (1, 0), b"")) is None


def test_a_classifiers_single_samples_get_their_classes():
    scores = np.array([[1, 9, 2], [3, 1, 1], [0, 0, 5]], np.float32)
    answers = split(Answer((tensor(scores),), 1.0, None), [1, 2], Task.CLASSIFICATION)
    assert [one.predicted for one in answers] == [1, None]


@pytest.mark.parametrize("shape", [(1, 3), (3,), ()])
def test_outputs_without_a_row_for_each_sample_are_refused(shape):
    output = TensorBytes(DType.INT8, shape, bytes(math.prod(shape)))
    with pytest.raises(ValueError, match="for 2 samples"):
        split(Answer((output,), 1.0, None), [1, 1], Task.CLASSIFICATION)


@pytest.mark.parametrize(
    ("given_shape", "gives_shape", "allowed"),
    [
        ((-1, 4), (-1, 3), True),
        ((1, 4), (-1, 3), False),
        ((-1, 4), (1, 3), False),
        ((-1, -1), (-1, 3), False),
        ((-1, 4), (-1, -1), False),
        ((-1,), (-1,), True),
        ((), (-1,), False),
    ],
)
def test_a_model_may_batch_if_its_first_dimension_is_free_everywhere_and_no_other(
    given_shape, gives_shape, allowed
):
    manifest = Manifest(
        "m", "1", "v", RuntimeFamily.ONNX, ("p",), (TensorSpec("x", DType.INT8, given_shape),),
        (TensorSpec("y", DType.INT8, gives_shape),), (), Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", "0" * 64),
    )  # fmt: skip
    assert may_batch(manifest) is allowed


def test_a_model_with_steps_or_expectations_answers_one_by_one():
    spec = TensorSpec("x", DType.FLOAT32, (-1, 4))
    manifest = Manifest(
        "m", "1", "v", RuntimeFamily.ONNX, ("p",), (spec,), (spec,), (), Measurement("", "", 1, 1.0, 1.0, 0),
        Provenance("", "0" * 64),
    )  # fmt: skip
    assert may_batch(manifest)
    assert not may_batch(msgspec.structs.replace(manifest, processing=Processing()))
    assert not may_batch(msgspec.structs.replace(manifest, expected=Expected()))


def test_tails_are_types_and_shapes_without_the_first_dimension():
    data = struct.pack("<2f", 1, 2)
    assert tails([TensorBytes(DType.FLOAT32, (1, 2), data)]) == ((DType.FLOAT32, (2,)),)


@given(st.integers(0, 1000), st.floats(0, 1e6), st.integers(0, 64))
def test_coming_again_is_between_a_second_and_a_minute_and_grows_with_the_line(waiting, call_s, together):
    seconds = retry_after_s(waiting, call_s, together)
    assert 1 <= seconds <= RETRY_MAX_S
    assert retry_after_s(waiting + 1, call_s, together) >= seconds
    assert retry_after_s(waiting, call_s * 2, together) >= seconds
