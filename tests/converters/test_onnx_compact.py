"""Compact files answer as before to the bit, and hold less."""

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from converters.recipe import Activations, DynamicInt8, Encoding, Float16, Layers, StaticInteger, WeightOnly
from converters.steps.onnx_compact import compact
from converters.steps.onnx_quantize import Nodes, build_static, find_ranges, prepare, quantize
from edgeml.errors import ConfigError


def answers(model, images, *, basic=False):
    options = onnxruntime.SessionOptions()
    if basic:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})


def graph_of(nodes, initializers, opset=18, output=TensorProto.FLOAT, shape=("n", "m")):
    graph = helper.make_graph(
        nodes, "graph with a long name",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", output, list(shape))],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )  # fmt: skip
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
    ).SerializeToString()


def static(pooled, encoding):
    """What the quantizer writes, before anything is done about its size."""
    prepared = prepare(pooled[0])
    step = StaticInteger(Activations.UINT8, encoding, weight_bits=7)
    ranges = find_ranges(prepared, pooled[1][:64], step.calibration)
    return build_static(onnx.load_from_string(prepared), ranges, step, Nodes((), ())).SerializeToString()


class TestRealModels:
    @pytest.mark.parametrize("encoding", Encoding)
    @pytest.mark.parametrize("basic", [False, True])
    def test_a_quantized_model_is_a_fifth_smaller_and_answers_as_before(self, pooled, encoding, basic):
        before = static(pooled, encoding)
        after = compact(before)
        assert len(after) < 0.8 * len(before)
        for old, new in zip(
            answers(before, pooled[1][:50], basic=basic),
            answers(after, pooled[1][:50], basic=basic),
            strict=True,
        ):
            np.testing.assert_array_equal(old, new)

    def test_a_float_model_answers_as_before(self, pooled):
        after = compact(pooled[0])
        assert len(after) < len(pooled[0])
        np.testing.assert_array_equal(
            answers(pooled[0], pooled[1][:50])[0], answers(after, pooled[1][:50])[0]
        )
        onnx.checker.check_model(onnx.load_from_string(after), full_check=True)

    @pytest.mark.parametrize("encoding", Encoding)
    def test_it_is_done_once(self, pooled, encoding):
        once = compact(static(pooled, encoding))
        assert compact(once) == once

    def test_inputs_and_outputs_keep_their_names_and_shapes(self, pooled):
        before, after = (onnx.load_from_string(one).graph for one in (pooled[0], compact(pooled[0])))
        assert list(before.input) == list(after.input)
        assert list(before.output) == list(after.output)

    def test_names_notes_and_unused_domains_are_gone(self, pooled):
        proto = onnx.load_from_string(compact(static(pooled, Encoding.QOPERATOR)))
        assert {entry.domain for entry in proto.opset_import} == {"", "com.microsoft"}
        assert max(len(one.name) for one in proto.graph.initializer) <= 2
        assert not proto.graph.value_info
        assert not any(node.name or node.doc_string for node in proto.graph.node)

    @pytest.mark.parametrize(
        "step",
        [DynamicInt8(Layers.ALL), WeightOnly(8), WeightOnly(4), Float16(), StaticInteger(Activations.INT16)],
    )
    def test_what_other_steps_write_is_compact_already(self, pooled, step):
        written = quantize(prepare(pooled[0]), pooled[1][:32], step)
        assert compact(written) == written


@pytest.mark.parametrize(
    "estimator",
    [RandomForestClassifier(8, random_state=0), make_pipeline(StandardScaler(), LogisticRegression())],
)
def test_an_estimator_of_scikit_learn_answers_as_before(estimator):
    """Trees are one operator of another domain, whose weights are attributes; labels are integers."""
    rows, labels = load_breast_cancer(return_X_y=True)
    rows = rows.astype(np.float32)
    options = {"target_opset": {"": 18, "ai.onnx.ml": 3}, "options": {"zipmap": False}}
    before = to_onnx(estimator.fit(rows, labels), rows[:1], **options).SerializeToString()
    after = compact(before)
    assert len(after) < len(before)
    for old, new in zip(answers(before, rows), answers(after, rows), strict=True):
        np.testing.assert_array_equal(old, new)


class TestSpelling:
    def test_equal_weights_are_kept_once(self):
        same = np.eye(4, dtype=np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "one"], ["a"]),
            helper.make_node("MatMul", ["a", "two"], ["y"]),
        ]
        after = compact(graph_of(nodes, {"one": same, "two": same.copy()}))
        assert len(onnx.load_from_string(after).graph.initializer) == 1

    def test_weights_of_another_type_or_shape_are_not_equal(self):
        zeros = np.zeros((4, 4), np.float32)
        nodes = [
            helper.make_node("MatMul", ["x", "one"], ["a"]),
            helper.make_node("Reshape", ["a", "shape"], ["b"]),
            helper.make_node("MatMul", ["b", "flat"], ["y"]),
        ]
        model = graph_of(
            nodes, {"one": zeros, "flat": zeros.reshape(4, 4)[:, :2].copy(), "shape": np.array([-1, 4])}
        )
        assert len(onnx.load_from_string(compact(model)).graph.initializer) == 3

    def test_constants_in_nodes_are_found_too(self):
        value = numpy_helper.from_array(np.eye(4, dtype=np.float32), "v")
        nodes = [
            helper.make_node("Constant", [], ["one"], value=value),
            helper.make_node("Constant", [], ["two"], value=value),
            helper.make_node("MatMul", ["x", "one"], ["a"]),
            helper.make_node("MatMul", ["a", "two"], ["y"]),
        ]
        graph = onnx.load_from_string(compact(graph_of(nodes, {}))).graph
        assert (len(graph.initializer), len(graph.node)) == (1, 2)

    def test_what_nobody_reads_is_dropped(self):
        nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("MatMul", ["x", "unused"], ["z"])]
        graph = onnx.load_from_string(compact(graph_of(nodes, {"unused": np.eye(4, dtype=np.float32)}))).graph
        assert (len(graph.initializer), len(graph.node)) == (0, 1)

    def test_an_output_is_never_renamed_even_where_a_short_name_is_taken(self):
        nodes = [helper.make_node("Relu", ["x"], ["long"]), helper.make_node("Neg", ["long"], ["y"])]
        graph = onnx.load_from_string(compact(graph_of(nodes, {}))).graph
        assert (graph.node[0].input[0], graph.node[1].output[0]) == ("x", "y")
        assert graph.node[0].output[0] not in {"x", "y", "long"}

    def test_a_graph_within_a_graph_keeps_its_names(self):
        inner = helper.make_graph(
            [helper.make_node("Neg", ["outer"], ["inner"])],
            "g",
            [],
            [helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)],
        )
        nodes = [
            helper.make_node("Relu", ["x"], ["outer"]),
            helper.make_node("If", ["yes"], ["y"], then_branch=inner, else_branch=inner),
        ]
        model = graph_of(nodes, {"yes": np.array(True)})
        x = np.ones((2, 4), np.float32)
        np.testing.assert_array_equal(answers(model, x)[0], answers(compact(model), x)[0])

    def test_bytes_that_are_no_model_are_refused(self):
        with pytest.raises(ConfigError, match="no ONNX model"):
            compact(b"\x00\xffnothing")


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from(["Add", "Mul", "MatMul", "Relu", "Neg", "Gemm"]), min_size=1, max_size=8),
    st.integers(0, 2**31 - 1),
    st.sampled_from([np.float16, np.float32]),
    st.sampled_from([11, 13, 18]),
)
def test_any_chain_of_operators_answers_as_before_and_never_grows(operators, seed, grain, opset):
    """Vectors of float16 numbers are packed, others are not; old opsets have no Split by sizes."""
    generator = np.random.default_rng(seed)
    nodes, initializers, current = [], {}, "x"
    for place, operator in enumerate(operators):
        target = "y" if place == len(operators) - 1 else f"tensor number {place}"
        shape = (4, 4) if operator in {"MatMul", "Gemm"} else (4,)
        inputs = [current]
        if operator not in {"Relu", "Neg"}:
            name = f"weight number {place}"
            initializers[name] = generator.integers(-3, 4, shape).astype(grain).astype(np.float32) / (
                1 if place % 2 else 3
            )
            inputs.append(name)
        if operator == "Gemm":
            initializers[f"bias number {place}"] = generator.normal(size=4).astype(grain).astype(np.float32)
            inputs.append(f"bias number {place}")
        nodes.append(helper.make_node(operator, inputs, [target], f"node number {place}"))
        current = target
    model = graph_of(nodes, initializers, opset)
    after = compact(model)
    x = generator.normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(answers(model, x)[0], answers(after, x)[0])
    assert len(after) <= len(model)
    assert compact(after) == after
