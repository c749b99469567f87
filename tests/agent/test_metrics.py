"""The page of metrics: golden text, read by Prometheus' own parser; counters never shrink, whatever is closed or dies."""

import os
import signal
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent.answering import Answering
from agent.diagnosis import Cause, Level
from agent.governor import Kind
from agent.metrics import METRICS_TYPE, BudgetFacts, Facts, StreamFacts, UpdateFacts, WorkerFacts, render
from agent.roster import Roster
from agent.server import Server
from agent.serving import Toll
from agent.windows import RELEASES_MAX, Observed, ReleaseKey, Total, Windows
from edgeml.clock import SystemClock
from edgeml.ids import Digest, ModelName, ReleaseId
from edgeml.telemetry import LATENCY_BINS, Counters, Drops, InputQuality, Loss, Stream, latency_bin
from edgeml.twin import DeviceState, Outcome

from ..waiting import wait_for

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.txt"
KEYS = [ReleaseKey(ReleaseId(f"m@{number}"), Digest("aa" * 32)) for number in (1, 2)]


def histogram(*latencies_us):
    counts = [0] * LATENCY_BINS
    for one in latencies_us:
        counts[latency_bin(one)] += 1
    return tuple(counts)


def facts(releases, toll=None):
    return Facts(
        "0.1.0",
        releases,
        (WorkerFacts(ReleaseId("digits@1.1.0"), 52_428_800), WorkerFacts(ReleaseId("kws@2"), 0)),
        {ModelName("digits"): toll or Toll(3, 2), ModelName("kws"): Toll()},
        (
            StreamFacts(Stream.WINDOWS, Loss(100, 90, 3, Drops(evicted=2, refused=1), 95), 7, 6),
            StreamFacts(Stream.EVENTS, Loss(5, 5, 0, sent=5), 0),
        ),
        (
            UpdateFacts(ModelName("digits"), DeviceState.TRIAL, Outcome.ROLLED_BACK),
            UpdateFacts(ModelName("kws"), DeviceState.IDLE, None),
        ),
        BudgetFacts(
            Level.SHED,
            {
                (ModelName("kws"), Kind.SHED, Cause.TEMPERATURE): 2,
                (ModelName("digits"), Kind.THROTTLE, Cause.TEMPERATURE): 3,
                (ModelName("digits"), Kind.RESTART, Cause.MEMORY): 1,
            },
            {ModelName("kws"): 41},
            {ModelName("digits"): 60_000_000, ModelName("kws"): 20_000_000},
            150_000_000,
            200_000_000,
            1,
            86.5,
            1_234_567,
            2_000_000,
        ),
    )


SAMPLE = facts(
    {
        ReleaseId("digits@1.1.0"): Total(Counters(5, 1, 2, 1, 3, 2), histogram(3.0, 100.0, 1000.0, 1e7), 10_001_103_000, InputQuality(1, 2, 3, 4, 5, 6, 7, 8, 9)),
        ReleaseId("digits@1.0.0"): Total(Counters(inferences=1), histogram(20.0), 20_000),
    }
)  # fmt: skip


def read(text):
    """Return every sample's value by its name and labels."""
    return {
        (one.name, *sorted(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


MODEL = ("model", "digits")


def counters(text):
    return {
        key: value
        for key, value in read(text).items()
        if key[0].endswith(("_total", "_bucket", "_count", "_sum"))
    }


def test_the_page_is_what_it_was():
    assert render(SAMPLE) == GOLDEN.read_text()


def test_prometheus_reads_it():
    families = {one.name: one for one in text_string_to_metric_families(render(SAMPLE))}
    assert families["edgeml_inferences"].type == "counter"
    assert families["edgeml_inference_latency_seconds"].type == "histogram"
    assert all(one.documentation and one.type != "unknown" for one in families.values())
    values = read(render(SAMPLE))
    digits = (("model", "digits"), ("version", "1.1.0"))
    assert values["edgeml_build_info", ("version", "0.1.0")] == 1
    assert [values[f"edgeml_{name}_total", *digits] for name in Counters.__struct_fields__] == [
        5,
        1,
        2,
        1,
        3,
        2,
    ]
    assert values["edgeml_worker_memory_bytes", *digits] == 52_428_800
    assert (values["edgeml_worker_crashes_total", MODEL], values["edgeml_worker_restarts_total", MODEL]) == (
        3,
        2,
    )
    assert values["edgeml_telemetry_rows_held", ("stream", "windows")] == 7
    assert values["edgeml_telemetry_rows_sent_total", ("stream", "windows")] == 95
    assert values["edgeml_telemetry_rows_dropped_total", ("reason", "evicted"), ("stream", "windows")] == 2
    on = {key for key, value in values.items() if key[0].startswith("edgeml_update_") and value}
    assert on == {
        ("edgeml_update_state", MODEL, ("state", "trial")),
        ("edgeml_update_state", ("model", "kws"), ("state", "idle")),
        ("edgeml_update_outcome", MODEL, ("outcome", "rolled_back")),
    }


def test_an_agent_that_has_done_nothing_says_so():
    nothing = Facts("0", {}, (), {}, (), ())
    values = read(render(nothing))
    assert values["edgeml_build_info", ("version", "0")] == 1
    assert not any(key[0] == "edgeml_worker_memory_bytes" for key in values)


@given(st.lists(st.floats(0.01, 1e9), max_size=30))
def test_a_bucket_counts_what_is_below_its_end(latencies_us):
    total = Total(Counters(len(latencies_us)), histogram(*latencies_us), round(sum(latencies_us) * 1000))
    values = read(render(facts({ReleaseId("m@1"): total})))
    name = "edgeml_inference_latency_seconds"
    buckets = {dict(key[1:])["le"]: value for key, value in values.items() if key[0] == f"{name}_bucket"}
    assert len(buckets) == 17
    for end, count in buckets.items():
        assert count == sum(one < float(end) * 1e6 for one in latencies_us), end
    labels = (("model", "m"), ("version", "1"))
    assert values[f"{name}_count", *labels] == len(latencies_us)
    assert values[f"{name}_sum", *labels] == pytest.approx(sum(latencies_us) / 1e6, abs=1e-9)


ACTS = st.one_of(
    st.tuples(st.just("answered"), st.sampled_from(KEYS), st.floats(0.1, 1e7), st.booleans()),
    st.tuples(st.just("failed"), st.sampled_from(KEYS)),
    st.tuples(st.just("labelled"), st.integers(0, 1)),
    st.tuples(st.just("misfit"), st.sampled_from(KEYS)),
    st.tuples(st.just("close"), st.sampled_from(KEYS), st.integers(0, 5)),
)


@given(st.lists(ACTS, max_size=40))
def test_no_counter_ever_shrinks_and_totals_are_the_windows_added_up(acts):
    windows = Windows(60.0)
    before, closed = {}, []
    for act in acts:
        match act:
            case "answered", key, latency_us, slow:
                windows.answered(key, latency_us, 1, "r", slow=slow)
            case "failed", key:
                windows.failed(key)
            case "labelled", label:
                windows.labelled("digits", "r", label)
            case "misfit", key:
                windows.misfit(key, InputQuality(schema=1))
            case "close", key, low_confidence:
                closed += windows.close(
                    0, 0.0, {key: Observed(None, low_confidence, 0, InputQuality(missing=low_confidence))}
                )
        after = counters(render(facts(windows.totals())))
        assert before.keys() <= after.keys()
        assert all(after[key] >= value for key, value in before.items())
        before = after
    closed += windows.close(0, 0.0, {})
    for release, total in windows.totals().items():
        mine = [one for one in closed if one.release == release]
        added, quality = Counters(), InputQuality()
        for one in mine:
            added = added.plus(one.counters)
            quality = quality.plus(one.quality)
        assert (total.counters, total.quality) == (added, quality)
        assert sum(total.latency) == sum(sum(one.latency) for one in mine) == added.inferences


def test_totals_of_many_releases_are_bounded_and_those_at_work_stay():
    windows = Windows(60.0)
    busy = KEYS[0]
    for number in range(3 * RELEASES_MAX):
        windows.answered(busy, 1.0, None, "", slow=False)
        windows.failed(ReleaseKey(ReleaseId(f"n@{number}"), Digest("bb" * 32)))
        windows.close(0, 0.0, {})
    totals = windows.totals()
    assert len(totals) == RELEASES_MAX
    assert totals[busy.release].counters.inferences == 3 * RELEASES_MAX


@pytest.mark.processes
def test_a_real_worker_is_counted_over_windows_and_its_own_death(supervisor, worker, ask):
    roster = Roster(supervisor)
    serving = roster.seat(ModelName("sample"))
    serving.swap(worker)
    answering = Answering(roster, Windows(60.0), SystemClock())

    def page():
        active = serving.active
        now = WorkerFacts(active.manifest.release, active.memory_bytes())
        idle = UpdateFacts(ModelName("sample"), DeviceState.IDLE, None)
        return render(
            Facts("0.1.0", answering.totals(), (now,), {ModelName("sample"): serving.toll}, (), (idle,))
        )

    server = Server(answering, "127.0.0.1:0", metrics=page)
    server.start()
    try:
        with httpx.Client(base_url=server.url, timeout=10) as client:
            for _ in range(5):
                answering.infer("sample", ask(), "r")
            first = client.get("/metrics")
            assert first.headers["Content-Type"] == METRICS_TYPE
            name, *labels = "edgeml_inferences_total", ("model", "sample"), ("version", "1.0.0")
            assert read(first.text)[name, *labels] == 5
            assert read(first.text)["edgeml_worker_memory_bytes", *labels] > 1 << 20
            answering.close(0)
            answering.infer("sample", ask(), "r")
            os.kill(serving.active.pid, signal.SIGKILL)
            wait_for(lambda: serving.toll.restarts, "another worker")
            answering.infer("sample", ask(), "r")
            last = client.get("/metrics").text
    finally:
        server.stop()
        serving.close()
    assert read(last)[name, *labels] == 7
    values, of_sample = read(last), ("model", "sample")
    assert values["edgeml_worker_crashes_total", of_sample] == 1
    assert values["edgeml_worker_restarts_total", of_sample] == 1
    before, after = counters(first.text), counters(last)
    assert all(after[key] >= value for key, value in before.items())


def test_without_metrics_there_is_no_such_page():
    server = Server(None, "127.0.0.1:0")
    server.start()
    try:
        assert httpx.get(f"{server.url}/metrics").status_code == 404
    finally:
        server.stop()
