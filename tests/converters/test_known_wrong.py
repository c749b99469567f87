"""The table of what is known: what it refuses, what it only calls slow, and what it leaves alone."""

import pytest

from converters.known_wrong import SLOW, WRONG, refusal, slowness
from converters.recipe import (
    Activations,
    DynamicInt8,
    Export,
    Float16,
    Granularity,
    Layers,
    Recipe,
    StaticInteger,
    WeightOnly,
)
from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime

ORT, LITERT = DeviceRuntime.ONNXRUNTIME, DeviceRuntime.AI_EDGE_LITERT
OLD, MICRO = DeviceRuntime.TFLITE_RUNTIME, DeviceRuntime.TFLITE_MICRO
INT8, INT16 = StaticInteger(Activations.INT8), StaticInteger(Activations.INT16)


def tflite(step):
    return Recipe(Export(RuntimeFamily.TFLITE), (), step)


@pytest.mark.parametrize("runtime", DeviceRuntime)
@pytest.mark.parametrize("step", [None, INT8, INT16], ids=["fp32", "int8", "int16"])
def test_float_and_static_integers_are_refused_nowhere(step, runtime):
    assert refusal(tflite(step), runtime) == ""


@pytest.mark.parametrize(
    "step", [DynamicInt8(), DynamicInt8(Layers.ALL), WeightOnly(8), WeightOnly(4), Float16()]
)
def test_a_microcontroller_gets_no_weights_apart_from_activations(step):
    assert "Micro" in refusal(tflite(step), MICRO)


def test_what_a_dynamic_recipe_does_by_itself_is_right_on_both_runtimes():
    for layers in Layers:
        assert not refusal(tflite(DynamicInt8(layers)), LITERT)
        assert not refusal(tflite(DynamicInt8(layers)), OLD)


def test_convolutions_with_one_scale_are_wrong_only_where_convolutions_are_quantized():
    assert refusal(tflite(DynamicInt8(Layers.ALL, convolution=Granularity.TENSOR)), LITERT)
    assert not refusal(tflite(DynamicInt8(Layers.LINEAR, convolution=Granularity.TENSOR)), LITERT)


@pytest.mark.parametrize(
    ("step", "runtime"),
    [(INT16, LITERT), (INT16, OLD), (INT8, OLD), (WeightOnly(4), LITERT), (DynamicInt8(Layers.ALL), LITERT)],
)
def test_what_is_slow_is_said_and_not_refused(step, runtime):
    assert "slower than float" in slowness(tflite(step), runtime)
    assert not refusal(tflite(step), runtime)


def test_dynamic_convolutions_of_an_onnx_file_are_called_slow():
    assert slowness(Recipe(Export(RuntimeFamily.ONNX), (), DynamicInt8(Layers.ALL)), ORT)
    assert not slowness(Recipe(Export(RuntimeFamily.ONNX), (), DynamicInt8()), ORT)


@pytest.mark.parametrize(
    ("step", "version", "words"),
    [
        (INT16, "1.17", "at chance level"), (INT16, "1.11", "do not load"), (INT16, "1.18", ""), (INT16, "", ""),
        (WeightOnly(4), "1.20", "before 1.21"), (WeightOnly(4), "1.21", ""), (WeightOnly(4), "", ""),
        (INT8, "1.11", ""), (WeightOnly(8), "1.11", ""), (DynamicInt8(), "1.11", ""),
    ],
)  # fmt: skip
def test_what_only_older_versions_get_wrong_is_refused_for_them_alone(step, version, words):
    said = refusal(Recipe(Export(RuntimeFamily.ONNX), (), step), ORT, version)
    assert words in said
    assert bool(words) == bool(said)


def test_every_row_has_a_reason_and_says_how_it_was_seen():
    assert all(row.reason and row.seen and row.runtimes for row in (*WRONG, *SLOW))
