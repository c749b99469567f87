"""What the observer counts, against counting one value at a time; and that batches, rings and merges change nothing."""

import bisect
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml import sketch
from edgeml.columns import signs, thinning_step
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, ScoreKind, Task
from edgeml.monitor import Statistic
from edgeml.observer import RING_ROWS, Observer
from edgeml.reference import build_monitor
from edgeml.sketch import STANDARD_LIMIT, STANDARD_SCALE
from edgeml.tensors import DType, TensorSpec

QUANTIZED = TensorSpec("image", DType.INT8, (-1, 3, 20, 20), scale=0.05, zero_point=-7)
SHAPES = {
    "table": (TensorSpec("x", DType.FLOAT32, (-1, 7)),),
    "picture": (TensorSpec("x", DType.FLOAT32, (-1, 1, 8, 8)),),
    "large quantized picture": (QUANTIZED,),
    "two inputs": (TensorSpec("a", DType.FLOAT32, (-1, 2)), TensorSpec("b", DType.UINT8, (-1, 70))),
    "a number": (TensorSpec("x", DType.FLOAT64, (-1,)),),
}
CLASSES = 4


def make(inputs, task=Task.CLASSIFICATION, scores=ScoreKind.LOGITS):
    manifest = Manifest(
        "m", "1", "v", RuntimeFamily.ONNX, ("p",), inputs, (TensorSpec("y", DType.FLOAT32, (-1, CLASSES)),), (),
        Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", "0" * 64), task=task, scores=scores,
    )  # fmt: skip
    given_inputs, outputs = draw(inputs, 300, seed=0)
    named = {spec.name: array for spec, array in zip(inputs, given_inputs, strict=True)}
    return manifest, build_monitor(manifest, named, {"y": outputs[0]})


def draw(inputs, rows, seed, spread=1.0):
    generator = np.random.default_rng(seed)
    arrays = []
    for spec in inputs:
        shape = (rows, *spec.shape[1:])
        if spec.dtype in {DType.FLOAT32, DType.FLOAT64}:
            arrays.append((generator.normal(size=shape) * spread).astype(spec.dtype.value))
        else:
            limits = np.iinfo(spec.dtype.value)
            arrays.append(generator.integers(limits.min, limits.max, shape, spec.dtype.value, endpoint=True))
    return arrays, [(generator.normal(size=(rows, CLASSES)) * 2 * spread).astype(np.float32)]


def value_of(column, manifest, tensors):
    """One column of one row, the slow way; float32 as the device computes."""
    spec = next(s for s in (*manifest.inputs, *manifest.outputs) if s.name == column.tensor)
    flat = tensors[column.tensor].reshape(-1)
    values = flat[:: thinning_step(len(flat))].astype(np.float32)
    if spec.scale is not None:
        values = (values - np.float32(spec.zero_point or 0)) * np.float32(spec.scale)
    with np.errstate(all="ignore"):
        match column.statistic:
            case Statistic.ELEMENT:
                return values[column.index]
            case Statistic.MEAN:
                return values.mean()
            case Statistic.STD:
                return values.std()
            case Statistic.PROJECTION:
                return values @ signs(column.index, len(values)) / np.sqrt(len(values))
        if manifest.scores is ScoreKind.LOGITS:
            values = np.exp(values - values.max())
            values = values / values.sum()
        match column.statistic:
            case Statistic.SCORE:
                return values[column.index]
            case Statistic.CONFIDENCE:
                return values.max()
    return np.float32(values.argmax()) if np.isfinite(values).all() else np.float32(np.nan)


def bin_of(column, value):
    if not math.isfinite(value):
        return len(column.spacings)
    if column.is_categorical:
        return min(int(value), len(column.spacings) - 1)
    return bisect.bisect_right([float(np.float32(edge)) for edge in column.edges], float(value))


def observe(observer, arrays, outputs, sizes):
    first = 0
    for size in sizes:
        observer.observe(
            [a[first : first + size] for a in arrays], [a[first : first + size] for a in outputs]
        )
        first += size


@pytest.mark.parametrize("inputs", SHAPES.values(), ids=SHAPES)
def test_counts_are_those_of_counting_one_value_at_a_time(inputs):
    manifest, monitor = make(inputs)
    arrays, outputs = draw(inputs, 150, seed=1, spread=1.5)
    outputs[0][3, 1] = np.nan
    outputs[0][4, 0] = np.inf
    if arrays[0].dtype.kind == "f":
        arrays[0][5] = np.nan
    observer = Observer(monitor, manifest)
    with np.errstate(all="ignore"):
        observe(observer, arrays, outputs, [1] * 150)
        taken = observer.take().sketch
    names = [spec.name for spec in (*inputs, *manifest.outputs)]
    for position, column in enumerate(monitor.columns):
        expected = [0] * (len(column.spacings) + 1)
        near = 0
        for row in range(150):
            tensors = {name: array[row] for name, array in zip(names, (*arrays, *outputs), strict=True)}
            value = value_of(column, manifest, tensors)
            expected[bin_of(column, value)] += 1
            near += any(abs(float(value) - edge) < 1e-5 * max(1, abs(edge)) for edge in column.edges)
        # Sums of many float32 may round differently; only values at an edge may then be counted next door.
        moved = sum(abs(a - b) for a, b in zip(taken.counts[position], expected, strict=True))
        assert moved <= 2 * near, column.name


@settings(max_examples=30)
@given(
    st.sampled_from(list(SHAPES)),
    st.lists(st.integers(1, RING_ROWS + 5), min_size=1, max_size=6),
    st.integers(0, 3),
)
def test_how_samples_are_batched_changes_nothing(name, sizes, seed):
    inputs = SHAPES[name]
    manifest, monitor = make(inputs)
    arrays, outputs = draw(inputs, sum(sizes), seed)
    single, batched = Observer(monitor, manifest), Observer(monitor, manifest)
    observe(single, arrays, outputs, [1] * sum(sizes))
    observe(batched, arrays, outputs, sizes)
    one, other = single.take(), batched.take()
    assert one.sketch.rows == other.sketch.rows == sum(sizes)
    assert one.low_confidence == other.low_confidence
    assert one.sketch.counts == other.sketch.counts


@settings(max_examples=20)
@given(st.integers(0, 600), st.integers(0, 600))
def test_two_takes_merge_into_one(first, second):
    inputs = SHAPES["table"]
    manifest, monitor = make(inputs)
    arrays, outputs = draw(inputs, first + second, seed=5)
    whole, halves = Observer(monitor, manifest), Observer(monitor, manifest)
    observe(whole, arrays, outputs, [1] * (first + second))
    observe(halves, arrays, outputs, [1] * first)
    early = halves.take()
    observe(halves, [a[first:] for a in arrays], [a[first:] for a in outputs], [1] * second)
    late = halves.take()
    together = whole.take()
    merged = sketch.merge(early.sketch, late.sketch)
    assert (merged.rows, merged.counts) == (together.sketch.rows, together.sketch.counts)
    # How rows fall into flushes may change the last bit of a float32; sums are in units of 1/65536.
    for a, b in zip(merged.sums, together.sketch.sums, strict=True):
        assert abs(a - b) <= first + second
    assert early.low_confidence + late.low_confidence == together.low_confidence


def test_each_column_counts_every_row_once():
    manifest, monitor = make(SHAPES["two inputs"])
    arrays, outputs = draw(SHAPES["two inputs"], 700, seed=2, spread=100.0)
    observer = Observer(monitor, manifest)
    observe(observer, arrays, outputs, [700])
    taken = observer.take().sketch
    assert [sum(column) for column in taken.counts] == [700] * len(monitor.columns)
    assert [len(column) for column in taken.counts] == [len(c.spacings) + 1 for c in monitor.columns]


def test_sums_are_of_clipped_standard_values_and_zero_for_codes():
    manifest, monitor = make(SHAPES["table"])
    arrays, outputs = draw(SHAPES["table"], 2, seed=3)
    arrays[0][0, 0] = 1e30
    arrays[0][1, 0] = -np.inf
    observer = Observer(monitor, manifest)
    observe(observer, arrays, outputs, [1, 1])
    taken = observer.take().sketch
    assert taken.sums[0] == STANDARD_LIMIT * STANDARD_SCALE
    assert taken.squares[0] == STANDARD_LIMIT**2 * STANDARD_SCALE
    column = monitor.columns[1]
    standard = [(float(value) - column.centre) / column.spread for value in arrays[0][:, 1]]
    assert taken.sums[1] == sum(round(z * STANDARD_SCALE) for z in standard)
    codes = [i for i, one in enumerate(monitor.columns) if one.is_categorical]
    assert codes
    assert all(taken.sums[i] == taken.squares[i] == 0 for i in codes)


def test_answers_below_the_reference_confidence_are_counted_and_so_are_those_that_are_no_number():
    manifest, monitor = make(SHAPES["table"])
    monitor = msgspec.structs.replace(monitor, confidence_low=0.5)
    observer = Observer(monitor, manifest)
    zeros = np.zeros((1, 7), np.float32)
    sure = np.array([[9, 0, 0, 0]], np.float32)
    unsure = np.zeros((1, 4), np.float32)
    broken = np.full((1, 4), np.nan, np.float32)
    for scores in (sure, unsure, broken, sure):
        observer.observe([zeros], [scores])
    assert observer.take().low_confidence == 2
    assert observer.take().low_confidence == 0


def test_arrays_are_copied_so_a_buffer_may_be_used_again():
    manifest, monitor = make(SHAPES["table"])
    buffer, outputs = np.zeros((1, 7), np.float32), [np.zeros((1, 4), np.float32)]
    kept, fresh = Observer(monitor, manifest), Observer(monitor, manifest)
    for value in range(-3, 4):
        buffer[:] = value
        kept.observe([buffer], outputs)
        fresh.observe([buffer.copy()], outputs)
    buffer[:] = 99
    assert kept.take() == fresh.take()


def test_a_model_that_classifies_nothing_is_watched_too():
    manifest, monitor = make(SHAPES["table"], Task.OTHER, ScoreKind.NONE)
    arrays, outputs = draw(SHAPES["table"], 10, seed=4)
    observer = Observer(monitor, manifest)
    observe(observer, arrays, outputs, [10])
    taken = observer.take()
    assert (taken.sketch.rows, taken.low_confidence) == (10, 0)
    assert len(taken.sketch.counts) == 7 + CLASSES
