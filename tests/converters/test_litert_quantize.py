"""Quantizing .tflite files: settings, bytes, layers, foreign files and hostile ones."""

import numpy as np
import pytest

from converters.recipe import (
    Activations,
    Boundary,
    CalibrationMethod,
    DynamicInt8,
    Float16,
    Layers,
    StaticInteger,
    WeightOnly,
)
from converters.steps.litert_quantize import check_step, quantize_tflite
from converters.steps.quantize_child import RefusedError, checked
from converters.steps.tflite_schema import ALIGNMENT_BYTES, operator_names, pack, unpack
from edgeml.child import ChildLimits
from edgeml.errors import BackendError, ConfigError
from edgeml.manifest import RuntimeFamily
from edgeml.probe import describe
from edgeml.tensors import DType

from .tflite_net import Writer, digits_net

pytestmark = pytest.mark.processes
INT8 = StaticInteger(Activations.INT8)
FLOAT32, INT8_TYPE = 0, 9


@pytest.fixture(scope="module")
def static():
    net = digits_net()
    return quantize_tflite(net.model, net.calibration, INT8)


def types(model):
    """Type of each tensor that a layer gives, by name."""
    [graph] = unpack(model).subgraphs
    return {
        graph.tensors[i].name.decode(): graph.tensors[i].type for one in graph.operators for i in one.outputs
    }


def test_a_static_file_takes_and_gives_integers_and_is_a_third(static):
    described = describe(static, RuntimeFamily.TFLITE)
    assert [one.dtype for one in (*described.inputs, *described.outputs)] == [DType.INT8, DType.INT8]
    assert described.inputs[0].scale > 0
    assert len(static) < 0.5 * len(digits_net().model)


def test_the_same_samples_in_any_order_give_the_same_bytes(static):
    net = digits_net()
    assert quantize_tflite(net.model, net.calibration[::-1], INT8) == static


def test_a_float_boundary_and_float_layers_stay_float():
    net = digits_net()
    step = StaticInteger(Activations.INT8, boundary=Boundary.FLOAT, float_layers=("depthwise",))
    made = quantize_tflite(net.model, net.calibration, step)
    described = describe(made, RuntimeFamily.TFLITE)
    assert [one.dtype for one in (*described.inputs, *described.outputs)] == [DType.FLOAT32, DType.FLOAT32]
    assert types(made)["depthwise"] == FLOAT32
    assert types(made)["pointwise"] == INT8_TYPE


def test_a_layer_that_is_not_there_is_named():
    net = digits_net()
    with pytest.raises(BackendError, match="no layer 'attention'"):
        quantize_tflite(
            net.model, net.calibration, StaticInteger(Activations.INT8, float_layers=("attention",))
        )


def test_data_lie_where_the_schema_wants_them(static):
    from ai_edge_litert import schema_py_generated as schema

    root = schema.Model.GetRootAs(static, 0)
    buffers = [root.Buffers(index) for index in range(root.BuffersLength())]
    places = [one._tab.Vector(one._tab.Offset(4)) for one in buffers if one.DataLength()]
    assert places
    assert all(place % ALIGNMENT_BYTES == 0 for place in places)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (StaticInteger(Activations.UINT8), "not uint8"),
        (StaticInteger(Activations.INT8, weight_bits=7), "8 bits, not 7"),
        (StaticInteger(Activations.INT8, calibration=CalibrationMethod.ENTROPY), "not by entropy"),
        (WeightOnly(2), "8 or 4 bits, not 2"),
        (DynamicInt8(bits=16), "8 or 4 bits, not 16"),
    ],
)
def test_settings_that_a_tflite_file_cannot_have_are_refused_before_any_work(step, said):
    with pytest.raises(ConfigError, match=said):
        check_step(step)


@pytest.mark.parametrize(
    ("model", "said"),
    [(b"", "no .tflite file"), (b"garbage" * 99, "no .tflite file"), (b"xxxxTFL3" + b"\xff" * 99, "damaged")],
)
def test_bytes_that_are_no_model_are_refused(model, said):
    with pytest.raises(BackendError, match=said):
        quantize_tflite(model, digits_net().calibration, Float16())


def test_a_file_of_integers_is_not_quantized_again(static):
    with pytest.raises(BackendError, match="quantized already"):
        quantize_tflite(static, digits_net().calibration, Float16())


def test_samples_of_another_shape_are_refused_with_both():
    net = digits_net()
    with pytest.raises(RefusedError, match=r"\[8, 8, 1\].*\[8, 8\]"):
        checked(net.model, net.calibration[..., 0])


def test_a_model_of_two_inputs_is_refused():
    root = unpack(digits_net().model)
    root.subgraphs[0].inputs = [0, 0]
    with pytest.raises(RefusedError, match="takes 2 inputs and gives 1 outputs"):
        checked(pack(root), digits_net().calibration)


def test_a_file_of_old_says_its_operators_in_the_field_of_old():
    root = unpack(digits_net().model)
    for code in root.operatorCodes:
        code.builtinCode = 0
    assert operator_names(unpack(pack(root))) == [
        "CONV_2D", "PAD", "DEPTHWISE_CONV_2D", "CONV_2D", "RESHAPE", "FULLY_CONNECTED",
    ]  # fmt: skip


def test_a_recipe_that_changes_nothing_is_refused():
    writer = Writer()
    taken, given = writer.tensor("x", (1, 4)), writer.tensor("y", (1, 4))
    writer.operator("TANH", [taken], given, writer.schema.AbsOptionsT())
    with pytest.raises(BackendError, match="fewer bits"):
        quantize_tflite(writer.bytes([taken], [given]), np.zeros((3, 4), np.float32), DynamicInt8(Layers.ALL))


def test_a_quantizer_that_takes_too_long_is_ended():
    net = digits_net()
    with pytest.raises(BackendError, match="quantized the model did not finish"):
        quantize_tflite(net.model, net.calibration, INT8, limits=ChildLimits(timeout_s=0.1))
