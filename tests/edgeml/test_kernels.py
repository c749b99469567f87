"""The arithmetic of steps: known values, properties, and peers that others wrote."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edgeml import kernels
from edgeml.steps import BoxForm

SIDES = st.integers(1, 17)
PIXELS = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 2), SIDES, SIDES, st.integers(1, 3)), elements=st.integers(0, 255)
)
REALS = arrays.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 8)),
    elements=st.floats(-1e4, 1e4, width=32),
)


def interpolated(pixels, height, width, mode):
    torch = pytest.importorskip("torch")
    image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)).astype(np.float32))
    more = {} if mode.startswith("nearest") else {"align_corners": False, "antialias": False}
    resized = torch.nn.functional.interpolate(image, size=(height, width), mode=mode, **more)
    return resized.numpy().transpose(0, 2, 3, 1)


@pytest.mark.torch
class TestResizeAgainstTorch:
    @given(PIXELS, SIDES, SIDES)
    @settings(max_examples=60)
    def test_bilinear(self, pixels, height, width):
        mine = kernels.resize_bilinear(pixels, (1, 2), (height, width))
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, interpolated(pixels, height, width, "bilinear"), atol=2e-3)

    @given(PIXELS, st.sampled_from([1, 2, 4, 8, 16]), st.sampled_from([1, 2, 4, 8, 16]))
    @settings(max_examples=60)
    def test_nearest(self, pixels, height, width):
        # Powers of two: elsewhere a centre may lie on an edge, and the last bit of a float32 decides in torch.
        mine = kernels.resize_nearest(pixels, (1, 2), (height, width))
        assert mine.dtype == np.uint8
        np.testing.assert_array_equal(mine, interpolated(pixels, height, width, "nearest-exact"))

    @pytest.mark.parametrize(("have", "want"), [((1080, 1920), (224, 224)), ((96, 96), (32, 48))])
    def test_a_camera_frame(self, have, want):
        pixels = np.random.default_rng(0).integers(0, 256, (1, *have, 3), np.uint8)
        mine = kernels.resize_bilinear(pixels, (1, 2), want)
        np.testing.assert_allclose(mine, interpolated(pixels, *want, "bilinear"), atol=0.05)


@given(PIXELS)
def test_a_resize_to_the_same_size_changes_nothing(pixels):
    size = pixels.shape[1:3]
    np.testing.assert_array_equal(kernels.resize_nearest(pixels, (1, 2), size), pixels)
    np.testing.assert_array_equal(kernels.resize_bilinear(pixels, (1, 2), size), pixels)


@given(PIXELS, SIDES, SIDES)
def test_a_resize_stays_within_the_values_that_were_there(pixels, height, width):
    mixed = kernels.resize_bilinear(pixels, (1, 2), (height, width))
    assert mixed.shape == (len(pixels), height, width, pixels.shape[3])
    assert pixels.min() <= mixed.min() <= mixed.max() <= pixels.max()
    nearest = kernels.resize_nearest(pixels, (1, 2), (height, width))
    assert set(np.unique(nearest)) <= set(np.unique(pixels))


def test_a_layout_makes_no_difference_to_a_resize():
    pixels = np.random.default_rng(0).random((2, 9, 7, 3)).astype(np.float32)
    first = kernels.resize_bilinear(pixels, (1, 2), (4, 5))
    other = kernels.resize_bilinear(pixels.transpose(0, 3, 1, 2), (2, 3), (4, 5))
    np.testing.assert_array_equal(first.transpose(0, 3, 1, 2), other)


@pytest.mark.parametrize(("have", "want", "first"), [(6, 2, 2), (5, 2, 1), (4, 4, 0), (7, 4, 1)])
def test_a_crop_keeps_the_middle(have, want, first):
    row = np.arange(have).reshape(1, have, 1)
    assert kernels.crop(row, (1, 2), (want, 1)).ravel().tolist() == list(range(first, first + want))


@given(REALS)
def test_what_is_standardised_has_mean_zero_and_deviation_one(values):
    result = kernels.standardise(values, (1,), 1e-6)
    varied = values.astype(np.float64).std(axis=1) > 0.1
    assert np.isfinite(result).all()
    np.testing.assert_allclose(result.mean(axis=1)[varied], 0, atol=1e-2)
    np.testing.assert_allclose(result.std(axis=1)[varied], 1, atol=1e-2)


def test_a_window_without_variation_is_zeros():
    assert kernels.standardise(np.full((1, 4, 2), 7, np.int16), (1,), 1e-6).tolist() == [[[0, 0]] * 4]


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64"])
def test_a_cast_rounds_half_to_even_and_clips(dtype):
    limits = np.iinfo(dtype)
    values = np.array([0.5, 1.5, 2.4, np.nan, np.inf, -np.inf, 1e30, -1e30], np.float32)
    result = kernels.cast(values, np.dtype(dtype))
    assert result.dtype == dtype
    assert result[:4].tolist() == [0, 2, 2, 0]
    # The largest float64 below 2^63 stands for the largest int64.
    highest = int(np.nextafter(2.0**63, 0)) if dtype == "int64" else limits.max
    assert result[4:].tolist() == [highest, limits.min, highest, limits.min]


@given(arrays.arrays(np.int64, 5, elements=st.integers(-(1 << 40), 1 << 40)))
def test_a_cast_of_integers_clips(values):
    assert kernels.cast(values, np.dtype(np.int8)).tolist() == [
        max(-128, min(127, v)) for v in values.tolist()
    ]


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "bool"])
def test_a_cast_to_other_types_is_numpys(kind):
    values = np.array([0.0, 1.5, -6000.0], np.float32)
    np.testing.assert_array_equal(kernels.cast(values, np.dtype(kind)), values.astype(kind))


@given(
    arrays.arrays(np.float32, 6, elements=st.floats(-20, 20, width=32)),
    st.floats(0.01, 2),
    st.integers(-128, 127),
)
def test_what_is_quantised_comes_back_within_half_a_step(values, scale, zero_point):
    steps = kernels.quantise(values, scale, zero_point, np.dtype(np.int8))
    back = kernels.dequantise(steps, scale, zero_point)
    low, high = (-128 - zero_point) * scale, (127 - zero_point) * scale
    np.testing.assert_allclose(back, np.clip(values, low, high), atol=scale * 0.5001 + 1e-4)


def test_what_is_not_finite_is_quantised_to_zero_or_the_ends():
    steps = kernels.quantise(np.array([np.nan, np.inf, -np.inf]), 0.5, 3, np.dtype(np.uint8))
    assert steps.tolist() == [3, 255, 0]


@given(REALS)
def test_softmax_gives_probabilities_in_the_same_order(logits):
    result = kernels.softmax(logits)
    np.testing.assert_allclose(result.sum(axis=-1), 1, rtol=1e-5)
    assert (result >= 0).all()
    assert (np.take_along_axis(result, logits.argmax(-1)[:, None], 1).ravel() == result.max(-1)).all()


def test_softmax_known_values():
    np.testing.assert_allclose(
        kernels.softmax(np.log(np.array([[1.0, 2.0, 5.0]]))), [[0.125, 0.25, 0.625]], rtol=1e-6
    )


@given(REALS)
def test_sigmoid_is_one_over_one_plus_exp(logits):
    expected = 1 / (1 + np.exp(-np.clip(logits.astype(np.float64), -700, 700)))
    np.testing.assert_allclose(kernels.sigmoid(logits), expected, atol=1e-6)


@given(REALS, st.integers(1, 8))
def test_top_k_is_a_sort(scores, count):
    count = min(count, scores.shape[1])
    highest, classes = kernels.top_k(scores, count)
    np.testing.assert_array_equal(highest, -np.sort(-scores, axis=1)[:, :count])
    np.testing.assert_array_equal(np.take_along_axis(scores, classes, 1), highest)
    assert classes.dtype == np.int64


def test_top_k_puts_nan_last():
    assert kernels.top_k(np.array([[np.nan, 1.0, 2.0]]), 3)[1].tolist() == [[2, 1, 0]]


def test_the_mean_squared_error_is_of_each_sample():
    a = np.array([[1.0, 2.0], [0.0, 0.0]], np.float32)
    b = np.array([[1.0, 4.0], [3.0, 4.0]], np.float32)
    assert kernels.mean_squared_error(a, b).tolist() == [2.0, 12.5]


def overlap(a, b):
    sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    shared = sides[0] * sides[1]
    whole = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared, whole


def plain_suppression(boxes, scores, limits):
    """The definition, one pair at a time."""
    count, overlap_max, score_min = limits
    pairs = [
        (-scores[m][c], m, c)
        for m in range(len(boxes))
        for c in range(len(scores[m]))
        if scores[m][c] >= score_min
    ]
    kept = []
    for _, m, c in sorted(pairs):
        free = True
        for other, its in kept:
            shared, whole = overlap(boxes[m], boxes[other])
            free &= not (its == c and shared > overlap_max * whole)
        if free:
            kept.append((m, c))
    return kept[:count]


class TestOverlaps:
    # Whole numbers: no rounding can part the definition from the kernel.
    @given(
        st.lists(
            st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 8)] * 2, *[st.integers(0, 40)] * 2),
            min_size=1,
            max_size=14,
        ),
        st.integers(1, 6),
        st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    )
    def test_it_is_the_definition(self, drawn, count, overlap_max):
        boxes = np.array([(y, x, y + h, x + w) for y, x, h, w, _, _ in drawn], np.float32)
        scores = np.array([one[4:] for one in drawn], np.float32)
        limits = (count, overlap_max, 5.0)
        found, values, classes = kernels.suppress_overlaps(boxes, scores, limits, BoxForm.CORNERS)
        kept = plain_suppression(boxes.tolist(), scores.tolist(), limits)
        assert found.shape == (count, 4)
        assert classes[: len(kept)].tolist() == [c for _, c in kept]
        assert values[: len(kept)].tolist() == [scores[m, c] for m, c in kept]
        np.testing.assert_array_equal(found[: len(kept)], boxes[[m for m, _ in kept]].reshape(-1, 4))
        assert (classes[len(kept) :] == -1).all()
        assert not found[len(kept) :].any()

    def test_centres_and_swapped_corners_are_corners(self):
        limits, scores = (1, 0.5, 0.0), np.ones((1, 1))
        centre = kernels.suppress_overlaps(np.array([[5, 5, 4, 2]]), scores, limits, BoxForm.CENTRE)
        swapped = kernels.suppress_overlaps(np.array([[7, 6, 3, 4]]), scores, limits, BoxForm.CORNERS)
        assert centre[0].tolist() == swapped[0].tolist() == [[3, 4, 7, 6]]

    def test_what_is_not_finite_is_no_box(self):
        boxes = np.array([[0, 0, np.nan, 1], [0, 0, 1, 1], [2, 2, 3, 3]], np.float32)
        scores = np.array([[0.9], [np.nan], [0.5]], np.float32)
        _, values, classes = kernels.suppress_overlaps(boxes, scores, (3, 0.5, 0.0), BoxForm.CORNERS)
        assert (values.tolist(), classes.tolist()) == ([0.5, 0, 0], [0, -1, -1])

    def test_tens_of_thousands_of_boxes_are_bounded(self):
        boxes = np.random.default_rng(0).random((20_000, 4)).astype(np.float32)
        scores = np.random.default_rng(1).random((20_000, 3)).astype(np.float32)
        found = kernels.suppress_overlaps(boxes, scores, (100, 0.9, 0.0), BoxForm.CENTRE)
        assert (found[2] >= 0).all()
        assert (np.diff(found[1]) <= 0).all()
