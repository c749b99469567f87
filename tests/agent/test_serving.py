"""Which worker serves: swaps under load, deaths and restarts."""

import os
import signal
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.serving import (
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    CRASH_WINDOW_S,
    CRASHES_MAX,
    CrashCount,
    NoModelError,
    Serving,
)
from edgeml.errors import BackendError
from edgeml.testing import sample_bundle

from ..waiting import wait_for


@pytest.fixture
def serving(supervisor):
    made = Serving(supervisor)
    yield made
    made.close()


@given(st.lists(st.floats(0, 2 * CRASH_WINDOW_S), max_size=20))
def test_crashes_are_too_many_exactly_if_three_came_within_the_window(gaps):
    crashes = CrashCount()
    times = []
    now_s = 0.0
    for gap in gaps:
        now_s += gap
        times.append(now_s)
        crashes.add(now_s)
        assert 0 <= crashes.delay_s <= BACKOFF_MAX_S
    expected = any(
        times[i + CRASHES_MAX - 1] - times[i] <= CRASH_WINDOW_S for i in range(len(times) - CRASHES_MAX + 1)
    )
    assert crashes.unstable is expected
    assert crashes.count == len(gaps)


def test_waits_double_from_nothing_to_a_maximum_and_start_again_after_a_quiet_time():
    crashes = CrashCount()
    waits = []
    for second in range(12):
        crashes.add(float(second))
        waits.append(crashes.delay_s)
    assert waits[:4] == [0.0, BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S, 4 * BACKOFF_FIRST_S]
    assert waits[-1] == BACKOFF_MAX_S
    crashes.add(12 + 2 * CRASH_WINDOW_S)
    assert crashes.delay_s == 0.0


@pytest.mark.processes
def test_without_a_model_requests_are_refused_with_a_hint(serving, ask):
    with pytest.raises(NoModelError, match="no model serves") as caught:
        serving.infer(ask())
    assert "assign or flash" in caught.value.hint
    assert serving.active is None


@pytest.mark.processes
def test_an_answer_names_the_variant_that_gave_it(serving, worker, sample, ask):
    assert serving.swap(worker) is None
    served = serving.infer(ask())
    assert (served.manifest.release, served.digest) == ("sample@1.0.0", sample[1])
    assert serving.active is worker
    assert (serving.crashes, serving.last_crash_s, serving.unstable) == (0, None, False)


@pytest.mark.processes
def test_swapping_under_load_loses_no_request(serving, supervisor, worker, sample, ask, limits, tmp_path):
    newer = tmp_path / "newer.edgeml"
    newer_digest = sample_bundle(newer, "1.1.0", seed=1)
    bundles = [(newer, newer_digest), sample] * 3
    serving.swap(worker)
    stop = threading.Event()
    served, failed = [], []

    def run():
        while not stop.is_set():
            try:
                served.append(serving.infer(ask()).digest)
            except Exception as error:
                failed.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    counted = 0
    for path, digest in bundles:
        old = serving.swap(supervisor.load(path, digest, limits))
        counted += old.take().sketch.rows
        old.stop()
        before = len(served)
        wait_for(lambda before=before: len(served) > before + 20)
        assert served[-1] == digest
    stop.set()
    for thread in threads:
        thread.join()
    counted += serving.active.take().sketch.rows
    assert failed == []
    assert {*served} == {sample[1], newer_digest}
    assert counted == len(served)


@pytest.mark.processes
def test_a_killed_worker_is_replaced_even_if_nobody_asks(serving, worker, ask):
    serving.swap(worker)
    first = serving.infer(ask()).answer.outputs
    os.kill(worker.pid, signal.SIGKILL)
    wait_for(lambda: serving.active is not worker)
    assert serving.infer(ask()).answer.outputs == first
    assert serving.active.pid != worker.pid
    assert serving.crashes == 1
    assert time.monotonic() - serving.last_crash_s < 10
    assert not serving.unstable


@pytest.mark.processes
def test_a_request_that_meets_the_death_fails_and_the_next_ones_are_told_to_wait(serving, worker, ask):
    serving.swap(worker)
    for expected in (1, 2):
        pid = serving.active.pid
        os.kill(pid, signal.SIGSEGV)
        with pytest.raises((BackendError, NoModelError)):
            serving.infer(ask())
        wait_for(lambda expected=expected: serving.crashes == expected)
        if expected == 2:
            with pytest.raises(NoModelError, match="is being restarted"):
                serving.infer(ask())
        wait_for(lambda pid=pid: serving.active.pid != pid)
    assert serving.infer(ask()).answer.predicted is not None


@pytest.mark.processes
def test_three_deaths_in_a_short_time_are_reported_and_a_swap_starts_counting_again(
    serving, supervisor, worker, sample, limits
):
    serving.swap(worker)
    for expected in range(1, CRASHES_MAX + 1):
        wait_for(lambda: serving.active.alive)
        os.kill(serving.active.pid, signal.SIGKILL)
        wait_for(lambda expected=expected: serving.crashes == expected)
    assert serving.unstable
    fresh = supervisor.load(*sample, limits)
    serving.swap(fresh).stop()
    assert (serving.crashes, serving.unstable, serving.active) == (0, False, fresh)


@pytest.mark.processes
def test_a_variant_that_can_no_longer_be_loaded_counts_as_crashing(serving, supervisor, limits, tmp_path):
    path = tmp_path / "gone.edgeml"
    digest = sample_bundle(path)
    serving.swap(supervisor.load(path, digest, limits))
    path.unlink()
    os.kill(serving.active.pid, signal.SIGKILL)
    wait_for(lambda: serving.crashes >= 2)
    with pytest.raises(NoModelError):
        serving.infer(())


@pytest.mark.processes
def test_closing_stops_the_worker_and_nothing_comes_back(serving, worker, ask):
    serving.swap(worker)
    serving.close()
    assert not worker.alive
    with pytest.raises(NoModelError):
        serving.infer(ask())
    time.sleep(0.2)
    assert serving.active is None


@pytest.mark.processes
def test_an_evicted_model_stays_away_until_it_is_let_back_and_that_is_no_crash(serving, worker, ask):
    serving.swap(worker)
    serving.evict("the device is hot")
    wait_for(lambda: not worker.alive)
    with pytest.raises(NoModelError, match="taken away: the device is hot"):
        serving.infer(ask())
    serving.evict("again")
    time.sleep(0.2)
    assert (serving.crashes, serving.toll.restarts, serving.active) == (0, 0, worker)
    serving.let_back()
    wait_for(lambda: serving.active is not worker)
    assert serving.infer(ask()).digest == worker.digest
    assert (serving.crashes, serving.unstable) == (0, False)


@pytest.mark.processes
def test_a_model_that_is_let_back_before_its_worker_was_seen_to_be_dead_has_not_crashed(
    serving, worker, ask, monkeypatch
):
    may_see, real = threading.Event(), worker.wait

    def late(timeout_s):
        gone = real(timeout_s)
        # Only whoever keeps the seat waits without end.
        assert timeout_s is not None or may_see.wait(60)
        return gone

    monkeypatch.setattr(worker, "wait", late)
    serving.swap(worker)
    serving.evict("memory is short")
    serving.let_back()
    may_see.set()
    wait_for(lambda: serving.active is not worker and serving.active.alive)
    assert (serving.crashes, serving.toll.crashes, serving.unstable) == (0, 0, False)
    serving.infer(ask())


@pytest.mark.processes
def test_a_successor_that_comes_up_while_its_model_is_evicted_is_killed_too(supervisor, worker, ask):
    loading, may_load = threading.Event(), threading.Event()

    class Slow:
        def load(self, *arguments):
            loading.set()
            assert may_load.wait(60)
            return supervisor.load(*arguments)

    serving = Serving(Slow())
    serving.swap(worker)
    os.kill(worker.pid, signal.SIGKILL)
    assert loading.wait(60)
    serving.evict("memory is short")
    may_load.set()
    wait_for(lambda: serving.active is not worker and not serving.active.alive)
    with pytest.raises(NoModelError, match="taken away"):
        serving.infer(ask())
    serving.let_back()
    wait_for(lambda: serving.active.alive)
    assert serving.infer(ask()).digest == worker.digest
    serving.close()


@pytest.mark.processes
def test_an_evicted_model_can_be_replaced_and_closed(serving, supervisor, worker, sample, ask, limits):
    serving.swap(worker)
    serving.evict("memory is short")
    serving.swap(supervisor.load(*sample, limits)).stop()
    assert serving.infer(ask()).digest == sample[1]
    serving.evict("memory is short")
    serving.close()
    with pytest.raises(NoModelError, match="no model serves"):
        serving.infer(ask())
