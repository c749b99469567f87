"""How the range of an input is watched as samples come in."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from converters.convergence import COVERED_FRACTION, extremes, watch


@given(
    hnp.arrays(
        np.float64,
        hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40),
        elements=st.floats(-1e6, 1e6),
    )
)
def test_after_the_needed_samples_the_range_is_there(samples):
    seen = watch(*extremes(samples))
    assert 1 <= seen.needed <= seen.samples == len(samples)
    assert [point.covered for point in seen.curve] == sorted(point.covered for point in seen.curve)
    at_needed = next(point for point in seen.curve if point.samples == seen.needed)
    assert at_needed.covered >= COVERED_FRACTION
    assert seen.curve[-1].covered == 1.0
    assert (seen.low, seen.high) == (samples.min(), samples.max())


def test_samples_without_a_finite_value_are_left_out_and_others_keep_their_finite_ones():
    low, high = extremes(np.array([[np.nan, np.nan], [1.0, np.inf], [-2.0, 3.0]]))
    assert (low.tolist(), high.tolist()) == ([1.0, -2.0], [1.0, 3.0])


def test_one_spike_among_many_has_not_settled():
    maxima = np.ones(200)
    maxima[77] = 50.0
    seen = watch(np.zeros(200), maxima)
    assert seen.needed > 150
    assert not seen.is_settled
