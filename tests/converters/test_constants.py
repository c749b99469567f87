"""Constants by their readers: the same names for every variant of a model, and the same reals as far as its bits reach."""

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from converters.constants import GROWTH_MAX, read_constants, says_nothing
from converters.recipe import Activations, DynamicInt8, Encoding, Float16, StaticInteger, WeightOnly
from converters.steps.onnx_compact import compact
from converters.steps.onnx_quantize import prepare, quantize
from converters.weights import Naming, naming_of, read_weights
from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily

pytestmark = pytest.mark.torch
ONNX = RuntimeFamily.ONNX
STEPS = {
    "float16": (Float16(), 2**-11),
    "weights of 8 bits": (WeightOnly(8), 1 / 127),
    "weights of 4 bits": (WeightOnly(4), 1 / 7),
    "QDQ": (StaticInteger(Activations.UINT8, Encoding.QDQ, weight_bits=7), 1 / 63),
    "QOperator": (StaticInteger(Activations.INT8, Encoding.QOPERATOR), 1 / 127),
}
"""Each with the step of its weights, as a part of the largest."""


def read(model):
    graph = onnx.load_from_string(model).graph
    return {one.name: one for one in read_constants(graph, len(model))}


def graph_of(nodes, initializers, width=4):
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture(scope="module")
def original(pooled):
    return compact(prepare(pooled[0]))


class TestVariantsOfOneModel:
    @pytest.mark.parametrize("kind", STEPS)
    def test_each_has_the_names_and_nearly_the_reals_of_the_original(self, pooled, original, kind):
        step, part = STEPS[kind]
        small = quantize(prepare(pooled[0]), pooled[1][:64], step)
        wanted, found = read(original), read(small)
        weights = [name for name in wanted if name.endswith((".weight", ".bias"))]
        assert any(one.startswith("Conv 2") for one in weights)
        assert any(one.startswith("Linear 1") for one in weights)
        assert set(weights) <= set(found)
        for name in weights:
            assert found[name].values.shape == wanted[name].values.shape, name
            largest = np.abs(wanted[name].values).max()
            far = np.abs(found[name].values - wanted[name].values).max()
            assert far <= 0.51 * part * largest + 1e-3, name

    def test_integers_whose_scale_is_elsewhere_are_no_weights(self, pooled):
        found = read(quantize(prepare(pooled[0]), pooled[1][:64], DynamicInt8()))
        assert found["Linear 1.integers"].stored in {"int8", "uint8"}
        assert "Linear 1.weight" not in found

    def test_a_file_of_ours_is_read_by_readers_and_an_exporters_by_names(self, pooled, original):
        assert naming_of(original, ONNX) is Naming.READER
        assert naming_of(pooled[0], ONNX) is Naming.NAME

    def test_names_and_readers_are_two_ways_to_the_same_numbers(self, pooled):
        by_name = read_weights(pooled[0], ONNX)
        by_reader = read_weights(pooled[0], ONNX, Naming.READER)
        total = sum(float(np.square(one.values).sum()) for one in by_name if one.stored == "float32")
        assert sum(
            float(np.square(one.values).sum()) for one in by_reader if one.stored == "float32"
        ) == pytest.approx(total)

    @settings(max_examples=200)
    @given(damage=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8))
    def test_damage_is_refused_or_read_and_never_a_crash(self, original, damage):
        torn = bytearray(original)
        for at, byte in damage:
            torn[at % len(torn)] = byte
        with contextlib.suppress(BackendError):
            read_weights(bytes(torn), ONNX, naming_of(bytes(torn), ONNX))


@pytest.mark.parametrize("step", [Float16(), WeightOnly(8), WeightOnly(4)], ids=str)
def test_a_file_that_is_nearly_all_weights_has_room_to_be_turned_back(step):
    """Without names, shapes and metadata that would count in its favour: how often each weight is copied on its way."""
    weight = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    model = graph_of(
        [helper.make_node("Gemm", ["x", "layer.weight"], ["y"], transB=1)], {"layer.weight": weight}, 512
    )
    small = quantize(prepare(model.SerializeToString()), np.ones((4, 512), np.float32), step)
    assert len(small) < 0.6 * weight.nbytes
    [found] = [one for one in read_weights(small, ONNX, Naming.READER) if one.name == "Linear 1.weight"]
    np.testing.assert_allclose(found.values, weight, atol=np.abs(weight).max() / 12)


def test_a_matrix_has_its_outputs_first_whichever_way_it_is_stored():
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    forms = {
        "MatMul": ({}, weight),
        "Gemm": ({"transB": 1}, np.ascontiguousarray(weight.T)),
    }
    for kind, (attributes, stored) in forms.items():
        model = graph_of([helper.make_node(kind, ["x", "w"], ["y"], **attributes)], {"w": stored})
        np.testing.assert_array_equal(read(model.SerializeToString())["Linear 1.weight"].values, weight.T)


def test_an_input_is_called_what_the_operator_calls_it_or_by_its_number():
    nodes = [
        helper.make_node("Reshape", ["x", "s"], ["r"]),
        helper.make_node("Own", ["r", "w"], ["o"], domain="own"),
        helper.make_node("Add", ["o", "w"], ["a"]),
        helper.make_node("Add", ["a", "w"], ["y"]),
    ]
    model = graph_of(nodes, {"s": np.array([4]), "w": np.ones(4, np.float32)})
    assert [*read(model.SerializeToString())] == ["Reshape 1.shape", "Own 1.input 1", "Add 1.B", "Add 2.B"]


@pytest.mark.parametrize(
    ("nodes", "initializers"),
    [
        ([("Mul", ["w", "v"], {})], {"w": np.ones((4000, 1), np.int8), "v": np.ones((1, 4000), np.int8)}),
        ([("Sum", ["w"] * 99, {})], {"w": np.ones(40_000, np.int8)}),
        (
            [("Concat", [f"a{i}", f"a{i}"], {"axis": 0}) for i in range(60)],
            {"a0": np.ones(64, np.int8)},
        ),
    ],
    ids=["a product of a row and a column", "read ninety-nine times", "doubled sixty times"],
)
def test_constants_that_would_grow_beyond_the_file_are_refused(nodes, initializers):
    made, last = [], ""
    for index, (kind, inputs, attributes) in enumerate(nodes):
        last = f"a{index + 1}"
        made.append(helper.make_node(kind, inputs, [last], **attributes))
    made.append(helper.make_node("Add", ["x", last], ["y"]))
    model = graph_of(made, initializers).SerializeToString()
    assert len(model) * GROWTH_MAX < 4000 * 4000
    with pytest.raises(BackendError, match="grow beyond"):
        read_weights(model, ONNX, Naming.READER)


@pytest.mark.parametrize(
    ("names", "node", "said"),
    [(["w"], "", True), (["conv.weight"], "", False), (["w"], "/conv/Conv", False), ([], "", True)],
)
def test_what_says_nothing(names, node, said):
    model = graph_of(
        [helper.make_node("Relu", ["x"], ["y"], name=node)],
        {name: np.ones(1, np.float32) for name in names},
    )
    assert says_nothing(model.graph) is said
