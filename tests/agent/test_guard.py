"""What requests bring, looked at before anything is done with it: counted, and served, clipped or refused."""

import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from agent.answering import Answering
from agent.guard import Guard
from agent.ipc import TensorBytes
from agent.roster import Roster
from agent.server import Server
from agent.windows import Windows
from edgeml.bundle import Bundle, write_bundle
from edgeml.client import Client
from edgeml.clock import SystemClock
from edgeml.errors import ConfigError
from edgeml.expectation import Expected, InputExpectation, Policy, Volume
from edgeml.ids import ModelName, digest_of_file
from edgeml.telemetry import NO_VIOLATIONS, InputQuality
from edgeml.tensors import DType, TensorSpec

NAN, INF = float("nan"), float("inf")


def guard(policy=Policy.SERVE, low=-1.0, high=1.0, dtype=DType.FLOAT32, **more):
    expected = Expected((InputExpectation("x", low, high, policy=policy, **more),))
    return Guard(expected, (TensorSpec("x", dtype, (-1, 4)),))


def row(*values, dtype=np.float32):
    return [np.array([values], dtype)]


@pytest.mark.parametrize(
    ("values", "counted"),
    [
        ((0, -1, 1, 0.5), InputQuality()),
        ((0, 0, 0, 1.5), InputQuality(out_of_range=1)),
        ((-9, 9, -9, 9), InputQuality(out_of_range=1)),
        ((0, NAN, 0, 0), InputQuality(missing=1)),
        ((0, INF, 0, 0), InputQuality(non_finite=1)),
        ((NAN, -INF, 5, 0), InputQuality(out_of_range=1, missing=1, non_finite=1)),
    ],
)
def test_each_violation_is_counted_once_and_served_as_it_is(values, counted):
    one = guard()
    given_rows = row(*values)
    assert one.admit(given_rows)[0] is given_rows[0]
    assert one.take() == counted
    assert one.take() == NO_VIOLATIONS


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ((0, 0, 1.5, 7), r"x: value \[0, 2\] is 1.5, at most 1 is expected"),
        ((0, -3, 0, 7), r"x: value \[0, 1\] is -3, at least -1 is expected"),
        ((0, 0, 0, INF), r"x: value \[0, 3\] is inf, at most 1 is expected"),
        ((NAN, NAN, 0, 0), r"x: 2 of 4 values are missing, at most 0 of all may be"),
        ((NAN, 2, 0, 0), r"x: 1 of 4 values are missing.*; value \[0, 1\] is 2, at most 1"),
    ],
)
def test_a_refusal_says_which_value_broke_which_bound(values, reason):
    one = guard(Policy.REFUSE)
    with pytest.raises(ConfigError, match=reason):
        one.admit(row(*values))
    assert one.take().refused == 1


def test_clipping_brings_values_into_the_range_in_their_own_type():
    one = guard(Policy.CLIP)
    given_rows = row(-INF, -3, 0.25, 9)
    (clipped,) = one.admit(given_rows)
    assert (clipped.tolist(), clipped.dtype) == ([[-1, -1, 0.25, 1]], np.float32)
    assert given_rows[0][0, 3] == 9
    assert one.take() == InputQuality(out_of_range=1, non_finite=1, clipped=1)
    whole = guard(Policy.CLIP, low=-2.5, high=7.5, dtype=DType.INT16)
    (clipped,) = whole.admit(row(-900, -2, 7, 900, dtype=np.int16))
    assert (clipped.tolist(), clipped.dtype) == ([[-2, -2, 7, 7]], np.int16)


def test_what_is_missing_cannot_be_clipped():
    one = guard(Policy.CLIP)
    with pytest.raises(ConfigError, match="1 of 4 values are missing"):
        one.admit(row(NAN, 0, 0, 0))
    assert one.take() == InputQuality(missing=1, refused=1)


def test_a_part_of_what_is_missing_may_be_allowed():
    one = guard(Policy.REFUSE, missing_max=0.5)
    one.admit(row(NAN, NAN, 0, 0))
    assert one.take() == NO_VIOLATIONS
    with pytest.raises(ConfigError, match=r"at most 0\.5 of all"):
        one.admit(row(NAN, NAN, NAN, 0))


def test_a_bound_is_of_the_inputs_own_type():
    one = guard(Policy.REFUSE, low=0.1, high=0.3)
    one.admit(row(0.1, 0.3, 0.2, 0.2))
    assert one.take() == NO_VIOLATIONS


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int64", "float16", "float32"])
def test_ends_beyond_the_type_are_those_of_the_type(dtype):
    one = guard(Policy.REFUSE, low=-1e300, high=1e300, dtype=DType(dtype))
    limits = np.finfo(dtype) if dtype.startswith("f") else np.iinfo(dtype)
    one.admit([np.array([[limits.min, limits.max, 0, 1]], dtype)])
    assert one.take() == NO_VIOLATIONS


def test_without_expectations_nothing_is_looked_at():
    specs = (TensorSpec("x", DType.FLOAT32, (-1, 4)), TensorSpec("on", DType.BOOL, (-1,)))
    for expected in (None, Expected(), Expected((InputExpectation("on", 0, 1),))):
        rows = [*row(NAN, INF, 0, 0), np.array([True])]
        one = Guard(expected, specs)
        assert one.admit(rows) is rows
        assert one.take() == NO_VIOLATIONS


def test_a_large_request_that_is_all_wrong_costs_little_more_memory_than_itself():
    one = guard(dtype=DType.UINT8, low=10, high=20)
    rows = np.zeros((1, 8 << 20), np.uint8)
    tracemalloc.start()
    one.admit([rows])
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert one.take().out_of_range == 1
    assert peak_bytes < 6 * rows.nbytes


def test_an_empty_request_breaks_nothing():
    one = guard(Policy.REFUSE)
    one.admit([np.zeros((0, 4), np.float32)])
    assert one.take() == NO_VIOLATIONS


def test_one_bad_input_of_several_refuses_the_request_once():
    expected = Expected(
        (InputExpectation("a", 0, 1, policy=Policy.CLIP), InputExpectation("b", 0, 1, policy=Policy.REFUSE))
    )
    one = Guard(expected, [TensorSpec(name, DType.FLOAT32, (-1, 1)) for name in "ab"])
    with pytest.raises(ConfigError, match="b: value"):
        one.admit([np.array([[5.0]]), np.array([[7.0]])])
    assert one.take() == InputQuality(out_of_range=1, refused=1)


@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.float64, np.float16]),
        st.tuples(st.integers(0, 3), st.integers(1, 5)),
        elements=st.floats(width=16),
    ),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_it_is_the_definition(values, missing_max):
    one = guard(low=-2.0, high=3.0, dtype=DType(values.dtype.name), missing_max=missing_max)
    one.admit([values])
    flat = values.ravel().tolist()
    assert one.take() == InputQuality(
        missing=sum(v != v for v in flat) > missing_max * len(flat),
        non_finite=any(abs(v) == INF for v in flat),
        out_of_range=any(abs(v) != INF and (v < -2 or v > 3) for v in flat),
    )


@given(arrays.arrays(np.int16, (1, 4), elements=st.integers(-40, 40)))
def test_what_was_clipped_is_in_the_range(values):
    (clipped,) = guard(Policy.CLIP, low=-10, high=20, dtype=DType.INT16).admit([values])
    np.testing.assert_array_equal(clipped, np.clip(values, -10, 20))


class TestAnAgent:
    """A bundle with expectations, from HTTP to a window and the totals of the metrics."""

    @pytest.fixture
    def house(self, supervisor, sample, tmp_path, limits):
        path = tmp_path / "guarded.edgeml"
        expected = Expected((InputExpectation("x", -5, 5, policy=Policy.REFUSE),), Volume(per_hour_max=7200))
        with Bundle(sample[0]) as bundle:
            members = {entry.name: bundle.read(entry.name) for entry in bundle.manifest.files}
            write_bundle(path, msgspec.structs.replace(bundle.manifest, expected=expected), members)
        roster = Roster(supervisor)
        windows = Windows(0.001)
        answering = Answering(roster, windows, SystemClock())
        windows.due(answering._clock.monotonic_s())
        worker = supervisor.load(path, digest_of_file(path), limits)
        answering.expect(worker)
        roster.seat(ModelName("sample")).swap(worker)
        server = Server(answering, "127.0.0.1:0")
        server.start()
        with Client(server.url) as client:
            yield answering, client
        server.stop()
        roster.close()

    def test_what_is_refused_is_the_callers_mistake_and_is_counted(self, house):
        answering, client = house
        sound = np.zeros((1, 4), np.float32)
        client.infer("sample", {"x": sound})
        for bad, words in [
            (sound + 9, r"x: value \[0, 0\] is 9, at most 5 is expected"),
            (sound * NAN, "4 of 4 values are missing"),
            (sound.astype(np.float64), "x is float64, the model takes float32"),
            (np.zeros((1, 5), np.float32), r"x has shape \[1, 5\]"),
        ]:
            with pytest.raises(ConfigError, match=words):
                client.infer("sample", {"x": bad})
        with pytest.raises(ConfigError, match=r"inputs \['z'\] given"):
            client.infer("sample", {"z": sound})
        early = answering.totals()["sample@1.0.0"].quality
        assert (early.schema, early.dtype, early.refused) == (2, 1, 0)
        (window,) = answering.close(1_000_000)
        # 6 requests in less than a second, and 2 a second are expected at most.
        assert window.quality == InputQuality(
            schema=2, dtype=1, out_of_range=1, missing=1, refused=2, volume_high=1
        )
        assert (window.counters.inferences, window.counters.errors) == (1, 0)
        assert answering.totals()["sample@1.0.0"].quality == window.quality

    def test_any_number_of_violations_is_one_window(self, house):
        answering, client = house
        for _ in range(50):
            with pytest.raises(ConfigError):
                client.infer("sample", {"x": np.full((1, 4), 9, np.float32)})
        (window,) = answering.close(1_000_000)
        assert window.quality.refused == window.quality.out_of_range == 50


def test_a_tensor_of_bytes_is_what_the_guard_sees(supervisor, sample, limits):
    """The sample bundle expects nothing: whatever comes is served, as before."""
    worker = supervisor.load(*sample, limits)
    worker.infer([TensorBytes(DType.FLOAT32, (1, 4), np.full((1, 4), NAN, np.float32).tobytes())])
    assert worker.take().quality == NO_VIOLATIONS
