"""Which samples calibrate, what ranges they give, and when they were enough."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from converters.calibration import CALIBRATION_MAX, Observed, convergence, observe, spread, tensors_of
from converters.steps.onnx_quantize import prepare


def seen(*rows, name="t"):
    low, high = np.array(rows, np.float32).T
    return Observed(name, low, high)


@given(st.integers(1, 3000), st.integers(2, 300))
def test_rows_are_few_even_and_with_both_ends(count, most):
    rows = spread(count, most)
    assert len(rows) == min(count, most)
    assert (rows[0], rows[-1]) == (0, count - 1)
    steps = np.diff(rows)
    assert not len(steps) or steps.max() - steps.min() <= 1


class TestConvergence:
    def test_ranges_that_the_first_samples_had_are_settled(self):
        found = convergence([seen(*[(-1, 2)] * 10)])
        assert (found.enough, found.is_settled) == (1, True)
        assert found.counts == (1, 2, 4, 8, 10)
        assert found.covered == (1, 1, 1, 1, 1)

    def test_a_range_that_the_last_sample_widens_is_not(self):
        found = convergence([seen(*[(-1, 1)] * 9, (-1, 3))])
        assert (found.enough, found.is_settled) == (10, False)
        assert found.covered == (0.5, 0.5, 0.5, 0.5, 1)

    def test_the_slowest_tensor_decides_and_is_named(self):
        found = convergence(
            [seen(*[(0, 1)] * 4, name="quick"), seen((0, 1), (0, 2), (0, 2), (0, 2), name="slow")]
        )
        assert (found.enough, found.last) == (2, "slow")

    def test_less_than_the_tolerance_does_not_count(self):
        rows = [(0, 0.96), (0, 1), (0, 1), (0, 1)]
        assert convergence([seen(*rows)], 0.05).enough == 1
        assert convergence([seen(*rows)], 0.01).enough == 2

    def test_zero_belongs_to_every_range(self):
        """A quantizer's range always holds zero: from 5 to 6 is from 0 to 6."""
        assert convergence([seen((5, 5), (5, 6))], 0.2).enough == 1

    def test_a_tensor_that_is_always_zero_is_settled_at_once(self):
        assert convergence([seen((0, 0), (0, 0))]).enough == 1

    @given(
        st.lists(
            st.tuples(st.floats(-1e6, 0, width=32), st.floats(0, 1e6, width=32)), min_size=1, max_size=40
        ),
        st.floats(0, 0.5),
    )
    def test_what_is_called_enough_is_enough_and_one_less_is_not(self, rows, tolerance):
        found = convergence([seen(*rows)], tolerance)
        width = lambda some: max(high for _, high in some) - min(low for low, _ in some)
        assert width(rows[: found.enough]) >= (1 - tolerance) * width(rows) * (1 - 1e-12)
        if found.enough > 1:
            assert width(rows[: found.enough - 1]) < (1 - tolerance) * width(rows)
        assert list(found.covered) == sorted(found.covered)
        assert found.covered[-1] == 1


class TestARealModel:
    def test_ranges_are_those_of_the_tensors(self, pooled):
        prepared = prepare(pooled[0])
        observed = {one.tensor: one for one in observe(prepared, pooled[1][:50])}
        assert (observed["input"].low, observed["input"].high) == (0, 1)
        assert observed["b"].low == 0
        values = np.concatenate(
            [value for batch in tensors_of(prepared, pooled[1][:50], ["e"]) for _, value in batch]
        )
        np.testing.assert_array_equal(observed["e"].minima, values.min(axis=(1, 2, 3)))
        np.testing.assert_array_equal(observed["e"].maxima, values.max(axis=(1, 2, 3)))

    def test_digits_are_enough_before_all_were_shown(self, pooled):
        found = convergence(observe(prepare(pooled[0]), pooled[1][spread(len(pooled[1]))]), 0.1)
        assert found.samples == CALIBRATION_MAX
        assert found.enough < 200
        assert found.covered[0] == pytest.approx(min(found.covered))
