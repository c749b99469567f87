"""What a candidate is fed while it is judged is what a device's own steps make of the same samples, to the last bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from converters.feed import channels_to, feed, real
from converters.recipe import Layout
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily
from edgeml.pipeline import Pipeline
from edgeml.steps import Dequantise, Preparation, Processing, Quantise, Transpose
from edgeml.tensors import DType, TensorSpec

INTEGERS = (DType.INT8, DType.UINT8, DType.INT16)
LAYOUTS = {"NCT": "NTC", "NCHW": "NHWC"}
LIMITS = {kind: np.iinfo(kind.value) for kind in INTEGERS}


def pipeline(taken, answered, before=(), given=None, after=()):
    """The steps of a bundle whose model takes and answers these."""
    processing = Processing((Preparation("x", given or taken, before),) if before else (), after)
    digest = "0" * 64
    return Pipeline(
        Manifest(
            "net", "1.0.0", "tflite", RuntimeFamily.TFLITE, ("board",), (taken,), (answered,), (),
            Measurement("host", "runtime", 1, 1.0, 1.0, 1), Provenance("net.py", digest, digest, "none", "test", ""),
            processing=processing,
        )
    )  # fmt: skip


def spec(name, shape, dtype=DType.FLOAT32, layout="", scale=None, zero_point=None):
    return TensorSpec(name, dtype, (-1, *shape), layout, scale, zero_point)


ANSWER = spec("y", (2,))
SCALES = st.floats(2.0**-14, 8.0, width=32)
REALS = npst.arrays(
    np.float32, npst.array_shapes(min_dims=2, max_dims=2, max_side=6), elements=st.floats(-1e6, 1e6, width=32)
)


class TestIntegersOfReals:
    @given(REALS, SCALES, st.sampled_from(INTEGERS), st.integers(-128, 255))
    def test_are_those_of_the_step_quantise(self, samples, scale, dtype, zero_point):
        zero_point = int(np.clip(zero_point, LIMITS[dtype].min, LIMITS[dtype].max))
        taken = spec("x", samples.shape[1:], dtype, "", scale, zero_point)
        given = spec("reals", samples.shape[1:])
        (wanted,) = pipeline(taken, ANSWER, (Quantise(),), given).prepare([samples])
        found = feed(samples, taken, Layout.SOURCE)
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype == np.dtype(dtype.value)

    @pytest.mark.parametrize("dtype", INTEGERS)
    @pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.007843137718737125, 0.0039215686])
    def test_are_the_same_half_way_between_two_of_them(self, dtype, scale):
        steps = np.arange(LIMITS[dtype].min, LIMITS[dtype].max + 1)[:: 1 if dtype is not DType.INT16 else 97]
        samples = ((steps + 0.5) * np.float32(scale)).astype(np.float32)[:, None]
        taken = spec("x", (1,), dtype, "", scale, 0)
        (wanted,) = pipeline(taken, ANSWER, (Quantise(),), spec("reals", (1,))).prepare([samples])
        np.testing.assert_array_equal(feed(samples, taken, Layout.SOURCE), wanted)

    def test_integers_that_the_source_takes_are_left_alone(self):
        samples = np.arange(6, dtype=np.uint8).reshape(3, 2)
        taken = spec("x", (2,), DType.UINT8, "", 0.5, 3)
        np.testing.assert_array_equal(feed(samples, taken, Layout.SOURCE), samples)

    def test_floats_for_a_model_of_floats_are_left_alone(self):
        samples = np.array([[1e30, -0.0], [3.5, 1e-30]], np.float32)
        np.testing.assert_array_equal(feed(samples, spec("x", (2,)), Layout.SOURCE), samples)


class TestChannels:
    @pytest.mark.parametrize(("first", "last"), LAYOUTS.items())
    def test_go_last_as_the_step_transpose_puts_them(self, first, last):
        shape = (2, 3, 5, 7)[: len(first)]
        samples = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        given = spec("reals", shape[1:], layout=first)
        moved = (*shape[2:], shape[1])
        taken = spec("x", moved, layout=last)
        (wanted,) = pipeline(taken, ANSWER, (Transpose(last),), given).prepare([samples])
        found = channels_to(samples, Layout.CHANNELS_LAST)
        np.testing.assert_array_equal(found, wanted)
        assert found.flags.c_contiguous
        assert found.shape == (2, *moved)

    @pytest.mark.parametrize("shape", [(4, 3), (4, 1, 8, 8), (4, 5, 6)])
    def test_stay_where_the_source_has_them(self, shape):
        samples = np.zeros(shape, np.float32)
        assert channels_to(samples, Layout.SOURCE) is samples

    def test_of_rows_there_are_none(self):
        samples = np.zeros((4, 3), np.float32)
        assert channels_to(samples, Layout.CHANNELS_LAST) is samples

    def test_go_last_and_become_integers_as_both_steps_do_it(self):
        samples = np.random.default_rng(0).normal(size=(9, 3, 4, 5)).astype(np.float32)
        taken = spec("x", (4, 5, 3), DType.INT8, "NHWC", 0.017, -9)
        given = spec("image", (3, 4, 5), layout="NCHW")
        (wanted,) = pipeline(taken, ANSWER, (Transpose("NHWC"), Quantise()), given).prepare([samples])
        np.testing.assert_array_equal(feed(samples, taken, Layout.CHANNELS_LAST), wanted)


class TestRealsOfIntegers:
    @given(st.data(), SCALES, st.sampled_from(INTEGERS))
    def test_are_those_of_the_step_dequantise(self, data, scale, dtype):
        answers = data.draw(npst.arrays(np.dtype(dtype.value), (3, 4)))
        zero_point = data.draw(st.integers(int(LIMITS[dtype].min), int(LIMITS[dtype].max)))
        answered = spec("y", (4,), dtype, "", scale, zero_point)
        steps = pipeline(spec("x", (2,)), answered, after=(Dequantise("y"),))
        (wanted,) = steps.finish([np.zeros((3, 2), np.float32)], [answers])
        found = real(answers, answered)
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == np.float32

    def test_are_the_answers_themselves_where_nothing_is_scaled(self):
        answers = np.arange(4, dtype=np.int64).reshape(2, 2)
        assert real(answers, spec("y", (2,), DType.INT64)) is answers
