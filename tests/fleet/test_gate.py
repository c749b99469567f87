"""Evidence against a release: known answers, one device is none, and how often a harmless release is stopped."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.evidence import log_e_two_arms
from edgeml.ids import DeviceId, ReleaseId
from edgeml.telemetry import Counters
from fleet.gate import stops, weigh
from fleet.rollout import Metric, MetricEvidence, Plan, Trial

PLAN = Plan(ReleaseId("m@2"))


def trial(device: str, slice_: int, candidate: bool, **counts: int) -> Trial:
    return Trial(DeviceId(device), slice_, candidate, Counters(**counts))


def evidence_of(trials: list[Trial], metric: Metric = Metric.WRONG) -> MetricEvidence:
    return next(one for one in weigh(trials) if one.metric is metric)


def test_every_metric_is_weighed_in_order_also_without_trials() -> None:
    found = weigh(())
    assert [one.metric for one in found] == list(Metric)
    assert all(one.log_e == 0 and one.candidate_trials == one.incumbent_trials == 0 for one in found)
    assert stops(found, PLAN) is None


def test_counts_are_read_as_trials_and_bad_events_of_each_metric() -> None:
    counts = {"inferences": 80, "errors": 20, "low_confidence": 8, "slow": 4, "labelled": 10, "wrong": 3}
    found = {
        one.metric: one for one in weigh([trial("a", 0, True, **counts), trial("b", 0, False, **counts)])
    }
    rates = {
        metric: (one.candidate_trials, one.candidate_rate, one.incumbent_rate)
        for metric, one in found.items()
    }
    assert rates == {
        Metric.WRONG: (10, 0.3, 0.3),
        Metric.LOW_CONFIDENCE: (80, 0.1, 0.1),
        Metric.ERRORS: (100, 0.2, 0.2),
        Metric.SLOW: (80, 0.05, 0.05),
    }


def test_evidence_is_that_of_the_two_arm_test_without_the_most_incriminating_device() -> None:
    trials = [
        trial("c1", 0, True, labelled=10, wrong=10),
        trial("c2", 0, True, labelled=10, wrong=4),
        trial("c3", 0, True, labelled=20, wrong=2),
        trial("i1", 0, False, labelled=10, wrong=1),
        trial("i2", 0, False, labelled=1, wrong=0),
    ]
    found = evidence_of(trials)
    assert found.log_e == pytest.approx(log_e_two_arms(np.array([0.1]), np.array([0.5]), np.array([2 / 4])))
    assert (found.candidate_trials, found.incumbent_trials) == (40, 11)


def test_windows_of_a_device_in_one_slice_are_one_unit() -> None:
    whole = [
        trial("c1", 0, True, labelled=4, wrong=3),
        trial("c2", 0, True, labelled=2),
        trial("i", 0, False, labelled=9),
    ]
    split = [trial("c1", 0, True, labelled=1, wrong=1)] * 3 + [trial("c1", 0, True, labelled=1), *whole[1:]]
    assert weigh(split) == weigh(whole)


def test_busy_device_weighs_no_more_than_a_quiet_one() -> None:
    def scene(busy: int) -> list[Trial]:
        return [
            trial("c1", 0, True, labelled=2 * busy, wrong=busy),
            trial("c2", 0, True, labelled=2, wrong=1),
            trial("i", 0, False, labelled=8, wrong=1),
        ]

    assert evidence_of(scene(1)).log_e == pytest.approx(evidence_of(scene(100_000)).log_e)


def test_single_candidate_device_is_no_evidence_however_bad() -> None:
    trials = [trial("c", s, True, labelled=9, wrong=9) for s in range(200)]
    trials += [trial(f"i{i}", s, False, labelled=9) for s in range(200) for i in range(5)]
    assert evidence_of(trials).log_e == 0
    assert stops(weigh(trials), PLAN) is None


def test_one_broken_device_among_many_does_not_stop_a_rollout() -> None:
    trials = [trial("broken", s, True, inferences=1, errors=99) for s in range(300)]
    trials += [trial(f"c{i}", s, True, inferences=100) for s in range(300) for i in range(9)]
    trials += [trial(f"i{i}", s, False, inferences=100) for s in range(300) for i in range(90)]
    assert stops(weigh(trials), PLAN) is None


def test_two_broken_devices_do() -> None:
    trials = [trial(f"broken{i}", s, True, inferences=1, errors=99) for s in range(300) for i in range(2)]
    trials += [trial(f"i{i}", s, False, inferences=100) for s in range(300) for i in range(90)]
    convicted = stops(weigh(trials), PLAN)
    assert convicted is not None
    assert convicted.metric is Metric.ERRORS


def test_slice_with_one_arm_only_says_nothing() -> None:
    apart = [trial(f"c{i}", 0, True, labelled=9, wrong=9) for i in range(3)] + [
        trial("i", 1, False, labelled=9)
    ]
    assert evidence_of(apart).log_e == 0


def test_threshold_is_shared_by_the_metrics_that_can_be_compared() -> None:
    def one(metric: Metric, e: float, trials: int) -> MetricEvidence:
        return MetricEvidence(metric, math.log(e), 0.5, 0.1, trials, trials)

    alone = [one(Metric.WRONG, 101, 5), one(Metric.SLOW, 1, 0)]
    shared = [one(Metric.WRONG, 101, 5), one(Metric.SLOW, 1, 5)]
    strong = [one(Metric.WRONG, 201, 5), one(Metric.SLOW, 300, 5)]
    assert stops(alone, PLAN) is alone[0]
    assert stops(shared, PLAN) is None
    assert stops(strong, PLAN) is strong[1]
    assert stops([one(Metric.WRONG, 1e9, 0)], PLAN) is None


counts = st.builds(
    lambda trials, bad: {"labelled": trials, "wrong": min(trials, bad)}, st.integers(0, 9), st.integers(0, 9)
)
scenes = st.lists(
    st.builds(
        lambda d, s, c, k: trial(f"d{d}", s, c, **k),
        st.integers(0, 5),
        st.integers(-2, 3),
        st.booleans(),
        counts,
    ),
    max_size=40,
)


def brute_force(trials: list[Trial]) -> float:
    """The definition, device by device, with the published two-arm test."""
    units: dict[tuple[str, int, bool], list[int]] = {}
    for one in trials:
        unit = units.setdefault((one.device, one.slice, one.candidate), [0, 0])
        unit[0] += one.counters.labelled
        unit[1] += one.counters.wrong
    tried = {key: bad / total for key, (total, bad) in units.items() if total}
    candidates = {device for device, _, arm in tried if arm}
    if len(candidates) < 2 or all(arm for _, _, arm in tried):
        return 0.0
    slices = sorted({s for _, s, _ in tried})
    logs = []
    for left_out in candidates:
        kept = {key: weight for key, weight in tried.items() if not (key[2] and key[0] == left_out)}
        sums = {
            arm: np.array([sum(w for (_, t, a), w in kept.items() if t == s and a is arm) for s in slices])
            for arm in (False, True)
        }
        sizes = {
            arm: np.array([sum(t == s and a is arm for _, t, a in kept) for s in slices])
            for arm in (False, True)
        }
        share = sizes[True] / np.maximum(sizes[True] + sizes[False], 1)
        logs.append(log_e_two_arms(sums[False], sums[True], share))
    return min(logs)


@settings(max_examples=200)
@given(scenes)
def test_fast_leave_one_out_equals_the_definition(trials: list[Trial]) -> None:
    assert evidence_of(trials).log_e == pytest.approx(brute_force(trials), abs=1e-9)


@pytest.mark.parametrize(
    "hostile",
    [{"labelled": -5, "wrong": 3}, {"labelled": 1, "wrong": 10**9}, {"labelled": 10**300, "wrong": 7}],
)
def test_absurd_counts_of_one_device_neither_fail_nor_convict(hostile: dict[str, int]) -> None:
    trials = [
        trial("c1", 0, True, **hostile),
        trial("c2", 0, True, labelled=5),
        trial("i", 0, False, labelled=5),
    ]
    found = evidence_of(trials)
    assert math.isfinite(found.log_e)
    assert found.log_e < 1


def test_ten_thousand_devices_over_a_hundred_slices_are_weighed_quickly() -> None:
    trials = [
        Trial(DeviceId(f"d{d}"), s, d < 500, Counters(20, 0, 1, 0, 5, int(d % 7 == 0)))
        for s in range(100)
        for d in range(10_000)
    ]
    begun = time.process_time()
    weigh(trials)
    assert time.process_time() - begun < 3.0  # 0.7 s on two slow cores


# Simulations


def simulated(
    rng: np.random.Generator, fleet: int, canaries: int, slices: int, rates: tuple[float, float]
) -> int | None:
    """Look after every slice; return the slice in which the rollout was stopped."""
    trials: list[Trial] = []
    for s in range(slices):
        for d in range(fleet):
            wrong = int(rng.binomial(20, rates[d < canaries]))
            trials.append(trial(f"d{d}", s, d < canaries, inferences=20, labelled=20, wrong=wrong))
        if stops(weigh(trials), PLAN) is not None:
            return s
    return None


def test_release_that_is_wrong_half_of_the_time_is_stopped_within_a_few_slices() -> None:
    rng = np.random.default_rng(1)
    found = [simulated(rng, 53, 5, 10, (0.03, 0.5)) for _ in range(20)]
    assert all(stopped is not None and stopped <= 4 for stopped in found)


def test_harmless_release_is_nearly_never_stopped() -> None:
    rng = np.random.default_rng(2)
    assert sum(simulated(rng, 30, 4, 15, (0.1, 0.1)) is not None for _ in range(60)) <= 2
