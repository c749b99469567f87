"""Windows: each outcome moves its counter, late labels find their release, and a span is what the monotonic clock says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.windows import PREDICTIONS_MAX, REQUEST_ID_MAX, Observed, ReleaseKey, Windows
from edgeml.expectation import Volume
from edgeml.ids import Digest, ReleaseId
from edgeml.sketch import Sketch
from edgeml.telemetry import LATENCY_BINS, NO_VIOLATIONS, Counters, InputQuality, encode_row, latency_bin

OLD = ReleaseKey(ReleaseId("m@1"), Digest("aa" * 32))
NEW = ReleaseKey(ReleaseId("m@2"), Digest("bb" * 32))


def sketch(rows):
    return Sketch(Digest("cc" * 32), rows, ((rows, 0),), (0,), (0,))


def begun(window_s=60.0, now_s=100.0):
    windows = Windows(window_s)
    windows.due(now_s)
    return windows


def close(windows, observations=None, now_s=160.0):
    return {
        ReleaseKey(one.release, one.digest): one
        for one in windows.close(1_000_000, now_s, observations or {})
    }


@pytest.mark.parametrize(
    ("act", "expected"),
    [
        (lambda w: w.answered(OLD, 10.0, 1, "r", slow=False), Counters(inferences=1)),
        (lambda w: w.answered(OLD, 10.0, None, "r", slow=True), Counters(inferences=1, slow=1)),
        (lambda w: w.failed(OLD), Counters(errors=1)),
        (lambda w: (w.answered(OLD, 10.0, 1, "r", slow=False), w.labelled("m", "r", 1)), Counters(inferences=1, labelled=1)),
        (lambda w: (w.answered(OLD, 10.0, 1, "r", slow=False), w.labelled("m", "r", 2)), Counters(inferences=1, labelled=1, wrong=1)),
    ],
    ids=["answered", "slow", "failed", "right", "wrong"],
)  # fmt: skip
def test_each_outcome_moves_its_counter(act, expected):
    windows = begun()
    act(windows)
    assert close(windows)[OLD].counters == expected


def test_what_the_worker_saw_is_in_the_window():
    windows = begun()
    windows.answered(OLD, 10.0, 1, "r", slow=False)
    window = close(windows, {OLD: Observed(sketch(1), 1, 12345)})[OLD]
    assert (window.sketch, window.counters.low_confidence, window.memory_bytes) == (sketch(1), 1, 12345)


def test_the_latency_histogram_has_no_trailing_zeros():
    windows = begun()
    windows.answered(OLD, 1000.0, None, "r", slow=False)
    windows.answered(OLD, 0.5, None, "r", slow=False)
    window = close(windows)[OLD]
    assert len(window.latency) == latency_bin(1000.0) + 1
    assert (window.latency[0], window.latency[-1], sum(window.latency)) == (1, 1, 2)
    windows.answered(OLD, 1e300, None, "r", slow=False)
    assert len(close(windows)[OLD].latency) == LATENCY_BINS


def test_releases_are_counted_apart_and_those_with_nothing_to_say_are_left_out():
    windows = begun()
    windows.answered(OLD, 10.0, 1, "r", slow=False)
    assert set(close(windows, {OLD: Observed(None, 0, 5), NEW: Observed(sketch(0), 0, 5)})) == {OLD}
    assert close(windows) == {}


def test_the_same_release_with_other_content_is_another_key():
    windows = begun()
    twin = ReleaseKey(OLD.release, NEW.digest)
    windows.failed(OLD)
    windows.failed(twin)
    assert set(close(windows)) == {OLD, twin}


def test_a_late_label_counts_for_the_release_that_predicted_in_the_window_in_which_it_comes():
    windows = begun()
    windows.answered(OLD, 10.0, 1, "old", slow=False)
    close(windows)
    windows.answered(NEW, 10.0, 1, "new", slow=False)
    assert windows.labelled("m", "old", 0)
    closed = close(windows)
    assert closed[OLD].counters == Counters(labelled=1, wrong=1)
    assert closed[NEW].counters == Counters(inferences=1)
    assert closed[OLD].latency == ()


def test_a_label_counts_once_and_one_for_an_unknown_request_not_at_all():
    windows = begun()
    windows.answered(OLD, 10.0, 1, "r", slow=False)
    assert windows.labelled("m", "r", 1)
    assert not windows.labelled("m", "r", 1)
    assert not windows.labelled("m", "never asked", 1)
    assert close(windows)[OLD].counters.labelled == 1


def test_an_answer_that_is_no_class_cannot_be_labelled():
    windows = begun()
    windows.answered(OLD, 10.0, None, "r", slow=False)
    assert not windows.labelled("m", "r", 1)


def test_the_oldest_predictions_are_forgotten_first_and_a_repeated_id_is_new_again():
    windows = begun()
    for index in range(PREDICTIONS_MAX):
        windows.answered(OLD, 10.0, 1, str(index), slow=False)
    windows.answered(OLD, 10.0, 1, "0", slow=False)
    windows.answered(OLD, 10.0, 1, "one more", slow=False)
    assert not windows.labelled("m", "1", 1)
    assert windows.labelled("m", "0", 1)
    assert windows.labelled("m", "2", 1)


def test_an_endless_id_is_counted_but_not_remembered():
    windows = begun()
    long = "x" * (REQUEST_ID_MAX + 1)
    windows.answered(OLD, 10.0, 1, long, slow=False)
    windows.answered(OLD, 10.0, 1, long[1:], slow=False)
    assert not windows.labelled("m", long, 1)
    assert windows.labelled("m", long[1:], 1)
    assert close(windows)[OLD].counters.inferences == 2


def test_a_window_is_due_after_its_time_and_the_next_begins_where_it_ended():
    windows = Windows(60.0)
    assert [windows.due(now_s) for now_s in (100.0, 159.9, 160.0)] == [False, False, True]
    windows.close(0, 161.0, {})
    assert [windows.due(now_s) for now_s in (220.9, 221.0)] == [False, True]


@pytest.mark.parametrize("now_ms", [1_800_000_000_000, 61_500, 5, 0])
def test_the_span_is_monotonic_time_and_its_start_is_wall_time_never_before_1970(now_ms):
    windows = begun(now_s=100.0)
    windows.failed(OLD)
    (window,) = windows.close(now_ms, 161.5, {})
    assert window.duration_ms == 61_500
    assert window.started_at_ms == max(0, now_ms - 61_500)


def test_a_window_closed_before_it_was_ever_due_has_no_duration():
    windows = Windows(60.0)
    windows.failed(OLD)
    (window,) = windows.close(1000, 5.0, {})
    assert (window.started_at_ms, window.duration_ms) == (1000, 0)


ACTS = st.lists(
    st.one_of(
        st.tuples(st.just("answered"), st.sampled_from([OLD, NEW]), st.integers(0, 2), st.integers(0, 30)),
        st.tuples(st.just("failed"), st.sampled_from([OLD, NEW])),
        st.tuples(st.just("labelled"), st.integers(0, 30), st.integers(0, 2)),
        st.tuples(st.just("close")),
    )
)


@given(ACTS)
def test_no_outcome_is_lost_or_counted_twice_however_windows_are_cut(acts):
    windows = begun()
    closed = []
    expected = {OLD: Counters(), NEW: Counters()}
    remembered = {}
    for act in acts:
        match act:
            case ("answered", key, predicted, request):
                windows.answered(key, 10.0, predicted, str(request), slow=False)
                remembered[request] = (key, predicted)
                expected[key] = expected[key].plus(Counters(inferences=1))
            case ("failed", key):
                windows.failed(key)
                expected[key] = expected[key].plus(Counters(errors=1))
            case ("labelled", request, label):
                known = remembered.pop(request, None)
                assert windows.labelled("m", str(request), label) == (known is not None)
                if known is not None:
                    key, predicted = known
                    expected[key] = expected[key].plus(Counters(labelled=1, wrong=int(predicted != label)))
            case ("close",):
                closed += windows.close(0, 0.0, {})
    closed += windows.close(0, 0.0, {})
    for key, total in expected.items():
        found = Counters()
        for window in closed:
            if window.release == key.release:
                found = found.plus(window.counters)
        assert found == total
    for window in closed:
        assert sum(window.latency) == window.counters.inferences
        assert encode_row(window)


class TestInputs:
    EXPECTED = Volume(per_hour_min=120, per_hour_max=240)

    def close(self, windows, observations=None, now_s=160.0):
        closed = windows.close(1_000_000, now_s, observations or {}, {OLD: self.EXPECTED})
        return {ReleaseKey(one.release, one.digest): one.quality for one in closed}

    @pytest.mark.parametrize(
        ("requests", "low", "high"), [(0, 1, 0), (1, 1, 0), (2, 0, 0), (4, 0, 0), (5, 0, 1)]
    )
    def test_a_window_with_too_few_or_too_many_requests_is_counted(self, requests, low, high):
        windows = begun()
        for _ in range(requests):
            windows.answered(OLD, 10.0, None, "r", slow=False)
        quality = self.close(windows).get(OLD, NO_VIOLATIONS)
        if not requests:
            quality = self.close(begun(), {OLD: Observed(None, 0, 5)})[OLD]
        assert quality == InputQuality(volume_low=low, volume_high=high)

    def test_requests_that_were_refused_were_requests(self):
        windows = begun()
        windows.misfit(OLD, InputQuality(schema=1))
        assert self.close(windows, {OLD: Observed(None, 0, 5, InputQuality(missing=1, refused=1))})[OLD] == InputQuality(
            schema=1, missing=1, refused=1
        )  # fmt: skip

    def test_a_window_that_is_closed_early_is_not_judged(self):
        assert self.close(begun(), {OLD: Observed(None, 0, 5)}, now_s=130.0) == {}

    def test_what_does_not_serve_is_not_judged(self):
        assert self.close(begun(), {NEW: Observed(None, 0, 5)}) == {}

    def test_totals_never_shrink(self):
        windows = begun()
        windows.misfit(OLD, InputQuality(dtype=1))
        assert windows.totals()[OLD.release].quality == InputQuality(dtype=1)
        self.close(windows, {OLD: Observed(None, 0, 5, InputQuality(clipped=3))})
        windows.misfit(OLD, InputQuality(dtype=1))
        assert windows.totals()[OLD.release].quality == InputQuality(dtype=2, clipped=3, volume_low=1)
