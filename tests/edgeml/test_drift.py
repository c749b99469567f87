"""Verdicts: silent on stationary devices, loud on shifted ones, with the false discovery rate that is promised."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeml.drift import (
    EFFECT_MIN,
    LOOK_BACKS,
    ColumnDrift,
    DeviceDrift,
    DriftTest,
    Verdict,
    corrected_psi,
    e_benjamini_hochberg,
    verdicts,
)
from edgeml.monitor import Column, Monitor, Statistic, digest
from edgeml.sketch import STANDARD_LIMIT, STANDARD_SCALE, Sketch

BINS = 16


def monitor_of(reference: np.ndarray) -> Monitor:
    """Monitor of columns [columns, rows] with bins at order statistics."""
    columns = []
    for index, values in enumerate(reference):
        ordered = np.sort(values)
        edges = ordered[np.rint(np.linspace(0, len(ordered) - 1, BINS + 1)).astype(int)]
        spacings = np.bincount(edges.searchsorted(ordered, "right"), minlength=len(edges) + 1).astype(float)
        spacings[0] += 1
        columns.append(
            Column(
                "x",
                Statistic.ELEMENT,
                index,
                tuple(spacings.tolist()),
                tuple(edges.tolist()),
                float(values.mean()),
                float(values.std()),
            )
        )
    return Monitor(tuple(columns), reference.shape[1])


def sketch_of(monitor: Monitor, values: np.ndarray) -> Sketch:
    counts, sums, squares = [], [], []
    for column, row in zip(monitor.columns, values, strict=True):
        edges = np.asarray(column.edges)
        counts.append((*np.bincount(edges.searchsorted(row, "right"), minlength=len(edges) + 1).tolist(), 0))
        z = np.clip((row - column.centre) / column.spread, -STANDARD_LIMIT, STANDARD_LIMIT)
        sums.append(int(np.rint(z * STANDARD_SCALE).sum()))
        squares.append(int(np.rint(z * z * STANDARD_SCALE).sum()))
    return Sketch(digest(monitor), values.shape[1], tuple(counts), tuple(sums), tuple(squares))


@pytest.fixture(scope="module")
def rng() -> np.random.Generator:
    return np.random.default_rng(2)


@pytest.fixture(scope="module")
def monitor(rng: np.random.Generator) -> Monitor:
    return monitor_of(rng.standard_normal((4, 2000)))


def windows(
    monitor: Monitor, rng: np.random.Generator, count: int, shift: float = 0.0, rows: int = 100
) -> list[Sketch]:
    offset = np.array([[0.0], [shift], [0.0], [0.0]])
    return [sketch_of(monitor, rng.standard_normal((4, rows)) + offset) for _ in range(count)]


def test_stationary_fleet_raises_no_alarm_in_any_of_its_windows(rng: np.random.Generator) -> None:
    """40 devices, each with its own reference, looked at in each of 24 windows."""
    alarms = 0
    fleet = []
    for _ in range(40):
        monitor = monitor_of(rng.standard_normal((4, 1000)))
        fleet.append((DriftTest(monitor), windows(monitor, rng, 24)))
    for now in range(1, 25, 3):
        judged = verdicts({str(i): test.assess(seen[:now]) for i, (test, seen) in enumerate(fleet)})
        assert set(judged.values()) <= {Verdict.OK, Verdict.WARN, Verdict.PAGE}
        alarms += sum(verdict is not Verdict.OK for verdict in judged.values())
    assert alarms == 0


def test_shifted_devices_are_found_among_stationary_ones_and_named(
    monitor: Monitor, rng: np.random.Generator
) -> None:
    test = DriftTest(monitor)
    fleet = {f"ok-{i}": test.assess(windows(monitor, rng, 12)) for i in range(20)}
    fleet |= {
        f"bad-{i}": test.assess([*windows(monitor, rng, 4), *windows(monitor, rng, 12, shift=1.0)])
        for i in range(3)
    }
    judged = verdicts(fleet)
    assert {name for name, verdict in judged.items() if verdict is not Verdict.OK} == {
        "bad-0",
        "bad-1",
        "bad-2",
    }
    worst = fleet["bad-0"].columns[0]
    assert worst.column == "x.element[1]"
    assert worst.mean_shift == pytest.approx(0.75, abs=0.15)


def test_large_shift_pages_and_a_small_certain_one_is_left_alone(rng: np.random.Generator) -> None:
    monitor = monitor_of(rng.standard_normal((4, 20_000)))
    test = DriftTest(monitor)
    large = test.assess(windows(monitor, rng, 10, shift=1.5))
    small = test.assess(windows(monitor, rng, 40, shift=0.15, rows=500))
    assert small.log_e > math.log(1e6)
    assert small.effect < EFFECT_MIN
    assert verdicts({"large": large, "small": small}) == {"large": Verdict.PAGE, "small": Verdict.OK}


def test_change_is_found_however_long_all_was_well_before(monitor: Monitor, rng: np.random.Generator) -> None:
    test = DriftTest(monitor)
    seen = [*windows(monitor, rng, 60), *windows(monitor, rng, 6, shift=1.5)]
    assert test.assess(seen).log_e > math.log(1e5)


def test_only_the_newest_windows_count(monitor: Monitor, rng: np.random.Generator) -> None:
    test = DriftTest(monitor)
    old, recent = windows(monitor, rng, 30, shift=3.0), windows(monitor, rng, LOOK_BACKS[-1])
    assert test.assess([*old, *recent]) == test.assess(recent)


def test_empty_windows_count_for_nothing(monitor: Monitor, rng: np.random.Generator) -> None:
    test, seen = DriftTest(monitor), windows(monitor, rng, 3)
    empty = sketch_of(monitor, np.empty((4, 0)))
    assert test.assess([seen[0], empty, seen[1], empty, seen[2]]) == test.assess(seen)
    assert test.assess([empty, empty]) == DeviceDrift(0.0, 0, ())


def test_too_few_rows_are_unknown(monitor: Monitor, rng: np.random.Generator) -> None:
    test = DriftTest(monitor)
    few = test.assess(windows(monitor, rng, 1, shift=9.0, rows=20))
    assert verdicts({"few": few, "none": DeviceDrift(0.0, 0, ())}) == {
        "few": Verdict.UNKNOWN,
        "none": Verdict.UNKNOWN,
    }


def test_no_devices_have_no_verdicts() -> None:
    assert verdicts({}) == {}


def test_effect_counts_only_in_columns_that_are_certain() -> None:
    uncertain = ColumnDrift("noisy", 0.0, 5.0, 0.0)
    certain = ColumnDrift("steady", 40.0, 0.01, 0.0)
    assert verdicts({"d": DeviceDrift(40.0, 1000, (certain, uncertain))}) == {"d": Verdict.OK}


def test_missing_values_are_found(monitor: Monitor, rng: np.random.Generator) -> None:
    seen = []
    for sketch in windows(monitor, rng, 10):
        counts = list(sketch.counts)
        counts[2] = (*[0] * (len(counts[2]) - 1), sketch.rows)
        seen.append(Sketch(sketch.monitor, sketch.rows, tuple(counts), sketch.sums, sketch.squares))
    drift = DriftTest(monitor).assess(seen)
    assert drift.columns[0].column == "x.element[2]"
    assert verdicts({"d": drift})["d"] is Verdict.PAGE


# e-BH


def brute_force(log_e: np.ndarray, rate: float) -> set[int]:
    """The largest set of hypotheses in which each e-value is at least D / (rate * size of the set)."""
    names = range(len(log_e))
    best: set[int] = set()
    for size in range(1, len(log_e) + 1):
        for chosen in itertools.combinations(names, size):
            if all(log_e[i] >= math.log(len(log_e) / (rate * size)) - 1e-12 for i in chosen):
                best = set(chosen)
                break
    return best


@given(hnp.arrays(float, st.integers(1, 7), elements=st.floats(-5, 9)), st.sampled_from([0.05, 0.2, 0.5]))
def test_e_bh_selects_the_largest_set_that_supports_itself(log_e: np.ndarray, rate: float) -> None:
    selected = e_benjamini_hochberg(log_e, rate)
    assert selected.sum() == len(brute_force(log_e, rate))
    if selected.any() and not selected.all():
        assert log_e[selected].min() >= log_e[~selected].max()


def test_e_bh_of_e_values_at_the_threshold_selects_them() -> None:
    assert e_benjamini_hochberg(np.log([40.0, 0.1]) + 1e-12, 0.05).tolist() == [True, False]
    assert e_benjamini_hochberg(np.log([39.0, 0.1]), 0.05).tolist() == [False, False]


# Effect size


def null_psi(rows: int, reference_rows: int, runs: int, rng: np.random.Generator) -> np.ndarray:
    values = []
    for _ in range(runs):
        monitor = monitor_of(rng.standard_normal((1, reference_rows)))
        spacings = monitor.columns[0].spacings
        counts = np.array(sketch_of(monitor, rng.standard_normal((1, rows))).counts[0], float)
        values.append(corrected_psi(counts, spacings, 1.0))
    return np.array(values)


@pytest.mark.parametrize(("rows", "reference_rows"), [(200, 1000), (1000, 500), (2000, 2000)])
def test_corrected_effect_of_nothing_changed_is_near_zero(
    rows: int, reference_rows: int, rng: np.random.Generator
) -> None:
    values = null_psi(rows, reference_rows, 200, rng)
    uncorrected = BINS * (1 / rows + 1 / reference_rows)
    assert values.mean() < 0.3 * uncorrected
    # With few rows the effect alone would mislead now and then; it never speaks without certainty.
    assert (values > EFFECT_MIN).mean() <= (0.01 if rows >= 1000 else 0.1)


def test_effect_of_few_rows_is_none() -> None:
    assert corrected_psi(np.array([49.0, 0, 0]), (10.0, 10.0), 1.0) == 0.0


def test_effect_grows_with_the_shift(rng: np.random.Generator, monitor: Monitor) -> None:
    test = DriftTest(monitor)
    effects = [test.assess(windows(monitor, rng, 10, shift=shift)).effect for shift in (0.3, 0.6, 1.2)]
    assert effects == sorted(effects)
    assert effects[-1] > 0.5
