"""A .tflite file as a graph: what is counted is right, and no bytes whatever do more than a BackendError."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from converters.estimate import tflite_graph
from converters.estimate.arena import arena
from converters.estimate.graph import (
    Arithmetic,
    OperatorKind,
    arithmetic,
    layers,
    macs,
    parameters,
    weight_bytes,
)
from converters.estimate.tflite_graph import read_tflite
from edgeml import probe
from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily

from .tflite_file import File, convolutional

MLPERF = Path(os.environ.get("EDGEML_MLPERF_TINY", "/nonexistent"))
needs_mlperf = pytest.mark.skipif(
    not MLPERF.is_dir(), reason="EDGEML_MLPERF_TINY names no directory with MLPerf Tiny's models"
)
SMALL = convolutional()


def test_macs_and_parameters_are_those_of_the_formulas():
    graph = read_tflite(SMALL)
    assert [one.kind for one in graph.operators] == [
        OperatorKind.CONV, OperatorKind.DEPTHWISE, OperatorKind.VIEW, OperatorKind.LINEAR, OperatorKind.SOFTMAX,
    ]  # fmt: skip
    assert [one.macs for one in graph.operators] == [6 * 6 * 16 * 27, 4 * 4 * 16 * 9, 0, 256 * 5, 0]
    assert [one.parameters for one in graph.operators] == [16 * 27 + 16, 16 * 9 + 16, 0, 256 * 5 + 5, 0]
    assert macs(graph) == sum(one.macs for one in layers(graph))
    assert parameters(graph) == 448 + 160 + 1285
    assert weight_bytes(graph) == 432 + 64 + 144 + 64 + 8 + 1280 + 20


def test_the_file_of_the_test_runs_on_the_runtime():
    said = probe.describe(SMALL, RuntimeFamily.TFLITE)
    assert said.inputs[0].shape == (1, 8, 8, 3)
    assert said.outputs[0].shape == (1, 5)


def test_bytes_moved_are_those_of_the_tensors():
    first = layers(read_tflite(SMALL))[0]
    assert first.activation_bytes == 8 * 8 * 3 + 6 * 6 * 16
    assert first.weight_bytes == 432 + 64


@pytest.mark.parametrize(("dtype", "said"), [("int8", Arithmetic.INT8), ("float32", Arithmetic.FLOAT32)])
def test_arithmetic_is_told_by_the_activations(dtype, said):
    graph = read_tflite(convolutional(dtype))
    assert {arithmetic(graph, one) for one in graph.operators} == {said}


def test_float_activations_with_integer_weights_are_hybrid():
    file = File("float32")
    data = file.input([1, 4])
    weights = file.tensor([3, 4], dtype="int8", values=[[1] * 4] * 3)
    graph = read_tflite(file.bytes([file.dense(data, 3, weights)]))
    assert arithmetic(graph, graph.operators[0]) is Arithmetic.HYBRID


def test_weights_that_are_stored_small_and_computed_as_floats_count_as_parameters_and_are_not_hybrid():
    file = File("float32")
    data = file.input([1, 4])
    small = file.tensor([3, 4], dtype="int8", values=[[1] * 4] * 3)
    graph = read_tflite(file.bytes([file.dense(data, 3, file.add("DEQUANTIZE", [small], [3, 4]))]))
    assert parameters(graph) == 12 + 3
    assert macs(graph) == 12
    assert arithmetic(graph, graph.operators[1]) is Arithmetic.FLOAT32


def test_a_constant_that_two_operators_share_counts_once():
    file = File("float32")
    data, weights = file.input([1, 4]), file.weights([4, 4])
    graph = read_tflite(file.bytes([file.dense(file.dense(data, 4, weights), 4, weights)]))
    assert parameters(graph) == 16 + 4 + 4
    assert sum(one.parameters for one in graph.operators) == 40


def test_custom_operators_and_free_shapes_are_told():
    file = File("float32")
    data = file.input([1, 1, 4], signature=[-1, -1, 4])
    graph = read_tflite(file.bytes([file.add("CUSTOM", [data], [1, 1, 4], custom=b"Mine")]))
    assert graph.custom == ("Mine",)
    assert graph.dynamic == ("t0",)
    assert graph.tensors[0].shape == (1, -1, 4)


def test_a_free_batch_is_one():
    file = File("float32")
    data = file.input([1, 4], signature=[-1, 4])
    graph = read_tflite(file.bytes([file.dense(data, 3)]))
    assert graph.dynamic == ()
    assert graph.tensors[0].shape == (1, 4)


def test_an_operand_that_is_left_out_is_none():
    file = File("float32")
    data = file.input([1, 4])
    out = file.add("FULLY_CONNECTED", [data, file.weights([3, 4]), -1], [1, 3])
    graph = read_tflite(file.bytes([out]))
    assert len(graph.operators[0].inputs) == 2
    assert parameters(graph) == 12


@needs_mlperf
@pytest.mark.parametrize(
    ("name", "products", "weights"),
    [
        ("anomaly_detection/ad01_int8.tflite", 264_192, 265_864),
        ("image_classification/pretrainedResnet_quant.tflite", 12_501_632, 77_706),
        ("image_classification/pretrainedResnet.tflite", 12_501_632, 77_706),
        ("streaming_wakeword/str_ww_ref_model.tflite", 826_368, 46_883),
    ],
)
def test_mlperf_tinys_models_are_counted(name, products, weights):
    """The autoencoder's by hand: 640*128 + 3*128*128 + 128*8 and back; ResNet8's are the 12.5 M that its authors state."""
    graph = read_tflite((MLPERF / name).read_bytes())
    assert macs(graph) == products
    assert parameters(graph) == weights


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", b"\0" * 64, b"\x1c\0\0\0TFL3" + b"\xff" * 64, b"PK\3\4" * 20], ids=range(5)
)
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(BackendError) as caught:
        read_tflite(data)
    assert caught.value.hint


def test_operators_that_share_long_lists_are_counted_before_they_are_read(monkeypatch):
    monkeypatch.setattr(tflite_graph, "OPERANDS_TOTAL_MAX", 10)
    with pytest.raises(BackendError, match="operands"):
        read_tflite(SMALL)


def test_a_long_name_is_cut():
    file = File("float32")
    file.tensors[file.input([1, 4])].name = b"n" * 100_000
    graph = read_tflite(file.bytes([file.dense(0, 3)]))
    assert len(graph.tensors[0].name) == 400


def swallow(data):
    """Read hostile bytes, and use what could be read."""
    try:
        graph = read_tflite(data)
    except BackendError:
        return
    layers(graph)
    arena(graph)


@settings(max_examples=200)
@given(st.integers(0, len(SMALL)))
def test_a_truncated_file_is_read_or_refused(length):
    swallow(SMALL[:length])


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(8, len(SMALL) - 1), st.integers(0, 255)), min_size=1, max_size=12))
def test_a_mutated_file_is_read_or_refused(changes):
    data = bytearray(SMALL)
    for place, value in changes:
        data[place] = value
    swallow(bytes(data))


@settings(max_examples=200)
@given(st.integers(0, len(SMALL) // 4 - 1), st.integers(0, 2**32 - 1))
def test_any_word_may_be_any_number(place, word):
    data = bytearray(SMALL)
    data[place * 4 : place * 4 + 4] = word.to_bytes(4, "little")
    swallow(bytes(data))
