"""An ONNX file as a graph: the same network counts the same in each of its forms, quantized or not."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converters.estimate.arena import peak_activation_bytes
from converters.estimate.graph import Arithmetic, OperatorKind, Role, arithmetic, layers, macs, parameters
from converters.estimate.onnx_graph import read_onnx
from edgeml.errors import BackendError

RANDOM = np.random.default_rng(0)


def floats(name, *shape):
    return numpy_helper.from_array(RANDOM.normal(size=shape).astype(np.float32), name)


def model(nodes, constants, inputs, outputs, **more):
    """A model of opset 18 with onnxruntime's operators; shapes as [1, 3, 8, 8] or with names."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        constants,
    )
    opsets = [
        helper.make_opsetid("", 18),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("mine", 1),
    ]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10, **more).SerializeToString()


def network():
    """Convolution, ReLU, depthwise convolution, mean, linear: [batch, 3, 8, 8] to [batch, 5]."""
    node = helper.make_node
    return model(
        [
            node("Conv", ["x", "w1", "b1"], ["a"], pads=[1, 1, 1, 1]),
            node("Relu", ["a"], ["b"]),
            node("Conv", ["b", "w2"], ["c"], group=16),
            node("GlobalAveragePool", ["c"], ["d"]),
            node("Flatten", ["d"], ["e"]),
            node("Gemm", ["e", "w3", "b3"], ["y"], transB=1),
        ],
        [
            floats("w1", 16, 3, 3, 3),
            floats("b1", 16),
            floats("w2", 16, 1, 3, 3),
            floats("w3", 5, 16),
            floats("b3", 5),
        ],
        {"x": ["batch", 3, 8, 8]},
        ["y"],
    )


MACS = [8 * 8 * 16 * 27, 6 * 6 * 16 * 9, 5 * 16]
PARAMETERS = 16 * 27 + 16 + 16 * 9 + 5 * 16 + 5


def weighted(graph):
    return [one for one in graph.operators if one.macs]


def test_macs_parameters_and_kinds_are_those_of_the_formulas():
    graph = read_onnx(network())
    assert [one.kind for one in weighted(graph)] == [
        OperatorKind.CONV,
        OperatorKind.DEPTHWISE,
        OperatorKind.LINEAR,
    ]
    assert [one.macs for one in weighted(graph)] == MACS
    assert [one.channels for one in weighted(graph)] == [16, 16, 5]
    assert parameters(graph) == PARAMETERS
    assert graph.dynamic == ()
    assert graph.form == 18


def test_a_free_batch_is_one():
    assert read_onnx(network()).tensors[read_onnx(network()).inputs[0]].shape == (1, 3, 8, 8)


def test_peak_memory_is_the_two_largest_that_meet():
    assert peak_activation_bytes(read_onnx(network())) == 2 * 16 * 8 * 8 * 4


class Samples:
    def __init__(self):
        self.feeds = iter([{"x": RANDOM.normal(size=(1, 3, 8, 8)).astype(np.float32)} for _ in range(4)])

    def get_next(self):
        return next(self.feeds, None)


@pytest.fixture(scope="module", params=["QDQ", "QOperator"])
def integer(request, tmp_path_factory):
    """The network as onnxruntime quantizes it."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    from converters.quiet import quiet

    target = tmp_path_factory.mktemp("integer") / "int8.onnx"
    with quiet():
        quantize_static(
            onnx.load_from_string(network()), str(target), Samples(), quant_format=QuantFormat[request.param],
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
        )  # fmt: skip
    return read_onnx(target.read_bytes())


def test_quantized_forms_count_what_the_float_one_counts(integer):
    assert [one.macs for one in weighted(integer)] == MACS
    assert [one.channels for one in weighted(integer)] == [16, 16, 5]
    assert parameters(integer) == PARAMETERS
    assert integer.dynamic == ()


def test_quantized_forms_compute_in_integers(integer):
    assert {arithmetic(integer, one) for one in weighted(integer)} == {Arithmetic.INT8}
    assert {integer.tensors[index].element.bits for one in weighted(integer) for index in one.outputs} == {8}
    assert not any(one.native == "Relu" for one in integer.operators), "rounding to uint8 does what it did"
    assert peak_activation_bytes(integer) < peak_activation_bytes(read_onnx(network())) / 3


def test_dynamic_quantization_counts_the_same(tmp_path):
    from onnxruntime.quantization import quantize_dynamic

    from converters.quiet import quiet

    (tmp_path / "float.onnx").write_bytes(network())
    with quiet():
        quantize_dynamic(str(tmp_path / "float.onnx"), str(tmp_path / "dynamic.onnx"))
    graph = read_onnx((tmp_path / "dynamic.onnx").read_bytes())
    assert macs(graph) == sum(MACS)


def test_weights_that_are_stored_small_and_computed_as_floats_are_parameters():
    small = numpy_helper.from_array(RANDOM.integers(-9, 9, (4, 3)).astype(np.int8), "w")
    node = helper.make_node
    data = model(
        [node("DequantizeLinear", ["w", "s"], ["f"]), node("MatMul", ["x", "f"], ["y"])],
        [small, numpy_helper.from_array(np.float32(0.1), "s")], {"x": [1, 4]}, ["y"],
    )  # fmt: skip
    graph = read_onnx(data)
    assert parameters(graph) == macs(graph) == 12
    assert arithmetic(graph, graph.operators[-1]) is Arithmetic.FLOAT32


def test_a_product_of_two_activations_has_no_parameters():
    graph = read_onnx(
        model([helper.make_node("MatMul", ["x", "z"], ["y"])], [], {"x": [1, 4, 6], "z": [1, 6, 2]}, ["y"])
    )
    assert graph.operators[0].kind is OperatorKind.MATMUL
    assert (macs(graph), parameters(graph)) == (4 * 6 * 2, 0)


def test_a_recurrent_cell_counts_a_product_for_each_step():
    cell = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)
    graph = read_onnx(model([cell], [floats("w", 1, 32, 4), floats("r", 1, 32, 8)], {"x": [10, 1, 4]}, ["y"]))
    assert macs(graph) == 10 * (32 * 4 + 32 * 8)
    assert graph.operators[0].kind is OperatorKind.RECURRENT


def test_a_linear_classifier_holds_its_parameters_in_attributes():
    weights = {"coefficients": [0.5] * 640, "intercepts": [0.1] * 10, "classlabels_ints": list(range(10))}
    node = helper.make_node("LinearClassifier", ["x"], ["label", "y"], domain="ai.onnx.ml", **weights)
    proto = onnx.load_from_string(model([node], [], {"x": ["batch", 64]}, ["y"]))
    proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    graph = read_onnx(proto.SerializeToString())
    assert (macs(graph), parameters(graph)) == (640, 650)
    assert graph.custom == ()


def test_a_last_layer_that_reads_integers_and_answers_in_floats_has_its_shape():
    scale, zero = numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "zero")
    weights = numpy_helper.from_array(RANDOM.integers(-9, 9, (4, 5)).astype(np.int8), "w")
    bias = numpy_helper.from_array(np.zeros(5, np.int32), "bias")
    proto = onnx.load_from_string(
        model(
            [
                helper.make_node("QuantizeLinear", ["x", "s", "zero"], ["q"]),
                helper.make_node("QGemm", ["q", "s", "zero", "w", "s", "zero", "bias"], ["y"], domain="com.microsoft"),
            ],
            [scale, zero, weights, bias], {"x": ["batch", 4]}, [],
        )
    )  # fmt: skip
    proto.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 5]))
    graph = read_onnx(proto.SerializeToString())
    answer = graph.tensors[graph.outputs[0]]
    assert graph.dynamic == ()
    assert (answer.shape, answer.element.bits) == ((1, 5), 32)


def test_custom_operators_external_data_and_free_shapes_are_told():
    away = floats("w", 4, 4)
    away.data_location = TensorProto.EXTERNAL
    away.ClearField("raw_data")
    away.external_data.add(key="location", value="../../etc/weights.bin")
    data = model(
        [helper.make_node("Mine", ["x"], ["a"], domain="mine"), helper.make_node("MatMul", ["z", "w"], ["y"])],
        [away], {"x": [1, 4], "z": [1, "length", 4]}, ["y", "a"],
    )  # fmt: skip
    graph = read_onnx(data)
    assert graph.custom == ("mine.Mine",)
    assert graph.external == ("../../etc/weights.bin",)
    assert set(graph.dynamic) == {"z", "y", "a"}
    assert macs(graph) == 16


def test_a_shape_that_the_file_claims_is_not_believed():
    proto = onnx.load_from_string(network())
    proto.graph.value_info.append(helper.make_tensor_value_info("a", TensorProto.FLOAT, [1, 16, 9999, 9999]))
    assert macs(read_onnx(proto.SerializeToString())) == sum(MACS)


def test_an_operator_that_runs_another_graph_is_told():
    branch = helper.make_graph([helper.make_node("Constant", [], ["k"], value=floats("", 1, 4))], "branch", [], [
        helper.make_tensor_value_info("k", TensorProto.FLOAT, [1, 4])
    ])  # fmt: skip
    yes = numpy_helper.from_array(np.array(True), "yes")
    graph = read_onnx(
        model(
            [helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)],
            [yes],
            {"x": [1]},
            ["y"],
        )
    )
    assert graph.nested == ("If",)


def test_operators_that_the_file_has_out_of_order_are_sorted():
    proto = onnx.load_from_string(network())
    nodes = [proto.graph.node[place] for place in (5, 1, 3, 0, 2, 4)]
    shuffled = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(shuffled)
    assert read_onnx(proto.SerializeToString()) == read_onnx(network())


def test_operators_that_wait_for_one_another_are_refused():
    node = helper.make_node
    with pytest.raises(BackendError, match="circle"):
        read_onnx(
            model([node("Add", ["x", "b"], ["a"]), node("Add", ["a", "x"], ["b"])], [], {"x": [1, 4]}, ["b"])
        )


def test_float16_weights_count_as_the_float_ones(tmp_path):
    """The converter leaves the casts of the model's input at the end of the file."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    from converters.quiet import quiet

    with quiet():
        half = convert_float_to_float16(onnx.load_from_string(network()), keep_io_types=True)
    graph = read_onnx(half.SerializeToString())
    assert (macs(graph), parameters(graph)) == (sum(MACS), PARAMETERS)
    assert {arithmetic(graph, one) for one in weighted(graph)} == {Arithmetic.FLOAT16}
    assert graph.dynamic == ()


def test_constants_are_no_activations():
    graph = read_onnx(network())
    assert {graph.tensors[index].role for one in graph.operators for index in one.outputs} == {
        Role.ACTIVATION
    }
    assert all(row.weight_bytes for row in layers(graph) if row.macs)


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\xff" * 99, b"\x08\x0a", network()[:200]], ids=range(5))
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(BackendError) as caught:
        read_onnx(data)
    assert caught.value.hint


@settings(max_examples=150)
@given(st.data())
def test_a_damaged_file_is_read_or_refused(data):
    whole = network()
    damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for place in data.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=8)):
        if damaged:
            damaged[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(BackendError):
        layers(read_onnx(bytes(damaged)))
