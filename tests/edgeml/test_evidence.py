"""The statistics: against known answers, and against their promise E[e] <= 1 when nothing changed."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.evidence import (
    RATE_RATIOS,
    CountEvidence,
    log_dirichlet_multinomial,
    log_e_two_arms,
    log_gamma,
    log_mean_exp,
)


@given(st.floats(1e-6, 1e12))
def test_log_gamma_agrees_with_the_standard_library(x: float) -> None:
    assert float(log_gamma(np.array([x]))[0]) == pytest.approx(math.lgamma(x), rel=1e-11, abs=2e-11)


def test_log_gamma_of_small_integers_is_the_log_of_factorials() -> None:
    x = np.arange(1, 20, dtype=float)
    factorials = [math.log(math.factorial(n - 1)) for n in range(1, 20)]
    np.testing.assert_allclose(log_gamma(x), factorials, rtol=1e-11, atol=1e-11)


def test_dirichlet_multinomial_is_a_distribution_over_sequences() -> None:
    alpha = np.array([0.7, 2.0, 1.3])
    sequences = itertools.product(range(3), repeat=5)
    counts = np.array([np.bincount(sequence, minlength=3) for sequence in sequences], float)
    assert np.exp(log_dirichlet_multinomial(counts, alpha)).sum() == pytest.approx(1)


def test_log_mean_exp_stands_large_values() -> None:
    assert float(log_mean_exp(np.array([1000.0, 1000.0]), 0)) == pytest.approx(1000)
    assert float(log_mean_exp(np.array([0.0, math.log(3)]), 0)) == pytest.approx(math.log(2))


def null_e(reference_rows: int, rows: int, runs: int, bins: int = 8, seed: int = 5) -> np.ndarray:
    """E-values of live counts of the very distribution the reference was drawn from, both drawn anew each time."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(runs):
        reference = np.sort(rng.standard_exponential(reference_rows))
        edges = reference[np.rint(np.linspace(0, reference_rows - 1, bins + 1)).astype(int)]
        spacings = np.bincount(edges.searchsorted(reference, "right"), minlength=len(edges) + 1).astype(float)
        spacings[0] += 1
        counts = np.bincount(
            edges.searchsorted(rng.standard_exponential(rows), "right"), minlength=len(edges) + 1
        )
        evidence = CountEvidence(tuple(spacings.tolist()), 1.0, ordered=True)
        values.append(float(np.exp(evidence.log_e(np.append(counts, 0)))))
    return np.array(values)


@pytest.mark.parametrize(("reference_rows", "rows"), [(40, 30), (200, 50), (200, 400)])
def test_evidence_of_nothing_changed_is_at_most_one_on_average(reference_rows: int, rows: int) -> None:
    values = null_e(reference_rows, rows, runs=1500)
    error = values.std() / math.sqrt(len(values))
    assert values.mean() <= 1 + 3 * error
    assert (values >= 20).mean() <= 0.05 + 3 * math.sqrt(0.05 / len(values))


def test_evidence_of_a_shift_grows_with_rows() -> None:
    spacings = (50.0,) * 10
    evidence = CountEvidence(spacings, 1.0, ordered=True)
    shifted = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0])
    some, more = evidence.log_e(np.stack([shifted, shifted * 20]))
    assert some < 5
    assert more > 20


def test_evidence_of_missing_values_is_found() -> None:
    evidence = CountEvidence((50.0,) * 10, 1.0, ordered=True)
    assert float(evidence.log_e(np.array([9] * 10 + [10]))) > math.log(1000)


def test_design_effect_divides_counts_and_so_weakens_evidence() -> None:
    counts = np.array([200, 50, 50, 50, 0])
    strong, weak = (
        float(CountEvidence((250.0,) * 4, effect, ordered=True).log_e(counts)) for effect in (1.0, 10.0)
    )
    assert 0 < weak < strong / 3


def test_no_counts_are_no_evidence() -> None:
    assert float(CountEvidence((10.0,) * 4, 1.0, ordered=False).log_e(np.zeros(5))) == pytest.approx(
        0, abs=1e-9
    )


def test_categorical_columns_are_judged_without_order() -> None:
    evidence = CountEvidence((90.5, 5.5, 5.5), 1.0, ordered=False)
    same, other = evidence.log_e(np.array([[90, 5, 5, 0], [5, 5, 90, 0]]))
    assert same < 0
    assert other > 20


# Two arms


def exact_two_arms(first: float, second: float, share: float) -> float:
    terms = []
    for ratio in RATE_RATIOS:
        theta = share * ratio / (share * ratio + 1 - share)
        terms.append((theta / share) ** second * ((1 - theta) / (1 - share)) ** first)
    return math.log(sum(terms) / len(terms))


@pytest.mark.parametrize(
    ("first", "second", "share"), [(0, 1, 0.5), (1, 0, 0.5), (3, 4, 0.1), (0.5, 0.25, 0.9)]
)
def test_two_arms_are_the_mean_of_likelihood_ratios(first: float, second: float, share: float) -> None:
    found = log_e_two_arms(np.array([first]), np.array([second]), np.array([share]))
    assert found == pytest.approx(exact_two_arms(first, second, share))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_slice_with_one_arm_says_nothing(share: float) -> None:
    assert log_e_two_arms(np.array([5.0]), np.array([9.0]), np.array([share])) == 0
    mixed = log_e_two_arms(np.array([5.0, 1.0]), np.array([9.0, 2.0]), np.array([share, 0.5]))
    assert mixed == pytest.approx(exact_two_arms(1, 2, 0.5))


def test_no_slices_say_nothing() -> None:
    assert log_e_two_arms(np.array([]), np.array([]), np.array([])) == 0


def two_arm_null(events: str, runs: int, seed: int) -> np.ndarray:
    """E-values when arms are drawn at random among 40 devices, 4 of them in the second arm, over 20 slices."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(runs):
        first, second, share = np.zeros(20), np.zeros(20), np.full(20, 0.1)
        for s in range(20):
            chosen = rng.permutation(40) < 4
            if events == "whole":
                weight = (rng.random(40) < 0.3).astype(float)
            elif events == "fractions":
                weight = rng.binomial(5, 0.2, 40) / 5
            else:
                weight = rng.beta(0.2, 1.0, 40) * rng.choice([0.1, 1.0])
            first[s], second[s] = weight[~chosen].sum(), weight[chosen].sum()
        values.append(math.exp(log_e_two_arms(first, second, share)))
    return np.array(values)


@pytest.mark.parametrize("events", ["whole", "fractions", "bursts"])
def test_two_equal_arms_give_at_most_one_on_average(events: str) -> None:
    values = two_arm_null(events, runs=2000, seed=11)
    error = values.std() / math.sqrt(len(values))
    assert values.mean() <= 1 + 3 * error
    assert (values >= 20).mean() <= 0.05 + 3 * math.sqrt(0.05 / len(values))


def test_worse_second_arm_is_found_and_a_better_one_is_not() -> None:
    slices = 30
    share = np.full(slices, 0.1)
    worse = log_e_two_arms(np.full(slices, 1.0), np.full(slices, 0.8), share)
    better = log_e_two_arms(np.full(slices, 9.0), np.full(slices, 0.1), share)
    assert worse > math.log(1000)
    assert better < 0
