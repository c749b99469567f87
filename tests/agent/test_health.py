"""What is kept after a trial and what is not."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.health import GoldenRun, TrialLimits, judge

GOOD = GoldenRun(1.0, 0.001, passed=True, latency_p50_ms=2.0, peak_memory_bytes=50 << 20)
TABLE = [
    # name, changes to the run, limits, crashes, healthy, words of the reason
    ("good, no limits", {}, TrialLimits(), 0, True, "agreement 1.000"),
    ("good, inside", {}, TrialLimits(2.0), 0, True, "2.00 ms"),
    ("golden failed", {"passed": False, "agreement": 0.5}, TrialLimits(), 0, False, "agreement 0.500"),
    ("too slow", {}, TrialLimits(1.9), 0, False, "median latency 2.00 ms"),
    ("latency unknown", {"latency_p50_ms": math.nan}, TrialLimits(1.0), 0, False, "latency"),
    ("crashed once", {}, TrialLimits(), 1, False, "crashed 1 times"),
    ("crashed and failed", {"passed": False}, TrialLimits(), 2, False, "crashed"),
]


@pytest.mark.parametrize(
    ("changes", "limits", "crashes", "healthy", "words"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_verdict_and_reason(changes, limits, crashes, healthy, words):
    verdict = judge(msgspec.structs.replace(GOOD, **changes), limits, crashes)
    assert verdict.healthy is healthy
    assert words in verdict.reason
    assert "\n" not in verdict.reason


runs = st.builds(
    GoldenRun,
    st.floats(0, 1),
    st.floats(0, 10),
    passed=st.booleans(),
    latency_p50_ms=st.floats(0, 1e4),
    peak_memory_bytes=st.integers(0, 1 << 34),
)


@given(runs, st.floats(0, 1e4), st.integers(0, 3))
def test_more_budget_never_turns_healthy_into_unhealthy(run, latency_ms, crashes):
    strict = judge(run, TrialLimits(latency_ms), crashes)
    loose = judge(run, TrialLimits(latency_ms * 2), crashes)
    assert loose.healthy or not strict.healthy
    assert judge(run, TrialLimits(), crashes).healthy or not loose.healthy
