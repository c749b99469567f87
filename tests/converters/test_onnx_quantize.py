"""Every ONNX compression of a real model: what it answers, what it weighs, and that it is the same twice."""

import hashlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.recipe import (
    Activations,
    CalibrationMethod,
    DynamicInt8,
    Encoding,
    Float16,
    Layers,
    StaticInteger,
    WeightOnly,
)
from converters.steps.onnx_layers import layers
from converters.steps.onnx_quantize import find_ranges, prepare, quantize, quantize_static
from edgeml.errors import BackendError, ConfigError

U8 = Activations.UINT8
STEPS = (
    StaticInteger(U8, weight_bits=7),
    StaticInteger(U8, Encoding.QDQ, weight_bits=7),
    StaticInteger(Activations.INT8),
    StaticInteger(Activations.INT16),
    StaticInteger(U8, calibration=CalibrationMethod.PERCENTILE, weight_bits=7),
    StaticInteger(U8, calibration=CalibrationMethod.ENTROPY, weight_bits=7),
    StaticInteger(U8, weight_bits=7, float_layers=("stem", "last")),
    DynamicInt8(),
    DynamicInt8(Layers.ALL),
    WeightOnly(8),
    WeightOnly(4),
    Float16(),
)


def answers(model, images):
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def operators(model):
    return [node.op_type for node in onnx.load_from_string(model).graph.node]


@pytest.fixture(scope="module")
def prepared(pooled):
    return prepare(pooled[0])


@pytest.fixture(scope="module")
def made(pooled, prepared):
    return {step: quantize(prepared, pooled[1][:40], step) for step in STEPS}


@pytest.mark.parametrize("step", [one for one in STEPS if one != WeightOnly(4)], ids=str)
def test_the_answers_stay_those_of_the_float_model(pooled, made, step):
    """Four bits are looked at below, to the bit: averages of random features do not forgive them."""
    float_answers, narrow = (answers(model, pooled[1][400:]) for model in (pooled[0], made[step]))
    assert (narrow.argmax(1) == float_answers.argmax(1)).mean() > 0.95
    assert (float_answers.argmax(1) == pooled[2][400:]).mean() > 0.8


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_the_opset_stays_and_no_domain_is_named_in_vain(made, step):
    proto = onnx.load_from_string(made[step])
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    assert opsets[""] == 18
    assert set(opsets) == {"", *(node.domain for node in proto.graph.node)}


def test_nothing_is_printed(pooled, prepared, capfd):
    quantize(prepared, pooled[1][:8], StaticInteger(U8, calibration=CalibrationMethod.PERCENTILE))
    assert capfd.readouterr() == ("", "")


def test_two_processes_write_the_same_bytes(pooled, made, tmp_path):
    """The quantizer's sets of names are ordered anew in each process."""
    (tmp_path / "model.onnx").write_bytes(pooled[0])
    np.save(tmp_path / "samples.npy", pooled[1][:40])
    script = (
        "import hashlib, sys, numpy as np\n"
        "from converters.recipe import *\n"
        "from converters.steps.onnx_quantize import prepare, quantize\n"
        "model, samples = open('model.onnx', 'rb').read(), np.load('samples.npy')\n"
        "for step in (StaticInteger(Activations.UINT8, weight_bits=7), StaticInteger(Activations.INT8), DynamicInt8(Layers.ALL), WeightOnly(4)):\n"
        "    print(hashlib.sha256(quantize(prepare(model), samples, step)).hexdigest())\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "7"},
    ).stdout.split()  # fmt: skip
    here = [
        StaticInteger(U8, weight_bits=7),
        StaticInteger(Activations.INT8),
        DynamicInt8(Layers.ALL),
        WeightOnly(4),
    ]
    assert said == [hashlib.sha256(made[step]).hexdigest() for step in here]


class TestStatic:
    def test_integers_go_from_the_first_layer_to_the_last(self, made):
        """The mean over the image became a pooling, and the last layer answers in float by itself."""
        assert operators(made[STEPS[0]]) == [
            "Cast", "Split", "Cast", "Split", "QuantizeLinear", "QLinearConv", "QLinearConv", "QLinearConv", "QLinearAdd",
            "QLinearGlobalAveragePool", "Flatten", "QGemm",
        ]  # fmt: skip

    def test_layers_left_in_float_are_in_float(self, made):
        mixed = made[StaticInteger(U8, weight_bits=7, float_layers=("stem", "last"))]
        assert operators(mixed).count("QLinearConv") == 2
        assert operators(mixed).count("Conv") == 1
        assert operators(mixed).count("Gemm") == 1

    @pytest.mark.parametrize("encoding", Encoding)
    @pytest.mark.parametrize("layer", ["depth", "point"])
    def test_a_float_layer_between_integer_ones_is_still_float_when_it_was_loaded(
        self, pooled, prepared, encoding, layer, tmp_path
    ):
        """Left to itself, onnxruntime quantizes its weights by one scale."""
        model = quantize(
            prepared, pooled[1][:50], StaticInteger(U8, encoding, weight_bits=7, float_layers=(layer,))
        )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns that what it writes here is for this machine alone
        options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        loaded = operators((tmp_path / "loaded.onnx").read_bytes())
        assert loaded.count("QLinearConv") == 2
        assert loaded.count("Conv") + loaded.count("FusedConv") == 1

    def test_a_layer_that_is_not_there_is_refused_with_those_that_are(self, pooled, prepared):
        with pytest.raises(ConfigError, match="no layer nowhere") as caught:
            quantize(prepared, pooled[1][:2], StaticInteger(U8, float_layers=("nowhere",)))
        assert "stem, depth, point, last" in caught.value.hint

    def test_seven_bits_stay_within_64(self, made):
        for step, most in ((StaticInteger(U8, weight_bits=7), 64), (StaticInteger(Activations.INT8), 127)):
            graph = onnx.load_from_string(made[step]).graph
            weights = [
                numpy_helper.to_array(one)
                for one in graph.initializer
                if one.data_type == TensorProto.INT8 and one.dims
            ]
            assert max(np.abs(one.astype(int)).max() for one in weights) == most

    @pytest.mark.parametrize("bits", [6, 16])
    def test_other_bits_are_refused(self, pooled, prepared, bits):
        with pytest.raises(ConfigError, match=f"{bits} weight bits"):
            quantize(prepared, pooled[1][:2], StaticInteger(U8, weight_bits=bits))

    def test_ranges_found_once_serve_many_recipes(self, pooled, prepared, made):
        ranges = find_ranges(prepared, pooled[1][:40], CalibrationMethod.MINMAX)
        for step in STEPS[:4]:
            assert quantize_static(prepared, ranges, step) == made[step]

    def test_samples_of_another_shape_are_refused(self, prepared):
        with pytest.raises(BackendError, match="cannot run the model on the calibration samples"):
            quantize(prepared, np.zeros((4, 1, 9, 8), np.float32), StaticInteger(U8))

    def test_samples_with_nan_are_refused_by_the_tensor_that_holds_it(self, prepared):
        with pytest.raises(BackendError, match="tensor input holds NaN"):
            quantize(prepared, np.full((4, 1, 8, 8), np.nan, np.float32), StaticInteger(U8))


class TestWeightsAlone:
    @pytest.mark.parametrize(
        ("step", "share"), [(WeightOnly(8), 0.45), (WeightOnly(4), 0.4), (Float16(), 0.65)]
    )
    def test_files_shrink(self, pooled, made, step, share):
        assert len(made[step]) < share * len(pooled[0])

    @pytest.mark.parametrize("step", [WeightOnly(8), WeightOnly(4), Float16()])
    def test_a_runtime_unpacks_them_once_when_it_loads(self, made, step, tmp_path):
        """What is left of the graph is the float model: nothing is unpacked for a request."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
        onnxruntime.InferenceSession(made[step], options, providers=["CPUExecutionProvider"])
        loaded = operators((tmp_path / "loaded.onnx").read_bytes())
        assert not {"Cast", "Mul", "BitShift", "Sub", "Reshape", "Split"} & set(loaded)
        assert loaded.count("Conv") + loaded.count("FusedConv") == 3

    @pytest.mark.parametrize("count", [64, 65])
    def test_four_bits_are_what_they_were_also_for_an_odd_number(self, count):
        generator = np.random.default_rng(count)
        integers = generator.integers(-7, 8, (count, 1)).astype(np.float32)
        integers[0] = 7
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", count])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1])],
            [numpy_helper.from_array(integers / 4, "w")],
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
        ).SerializeToString()
        after = quantize(prepare(model), np.zeros((1, count), np.float32), WeightOnly(4))
        eye = np.eye(count, dtype=np.float32)
        np.testing.assert_array_equal(answers(after, eye), integers / 4)

    def test_other_bits_are_refused(self, pooled, prepared):
        with pytest.raises(ConfigError, match="weights of 3 bits"):
            quantize(prepared, pooled[1][:1], WeightOnly(3))


class TestLayers:
    def test_a_layer_has_the_name_of_its_weights_and_the_tensor_after_its_activation(self, prepared):
        found = layers(onnx.load_from_string(prepared).graph)
        assert [(one.name, one.operator, one.parameters, one.output) for one in found] == [
            ("stem", "Conv", 480, "b"), ("depth", "Conv", 480, "d"), ("point", "Conv", 2352, "e"), ("last", "Gemm", 196, "logits"),
        ]  # fmt: skip
        assert [one.name for one in found if one.is_narrow] == ["stem"]

    def test_nodes_without_names_get_one_and_shared_weights_name_no_layer(self):
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "same.weight"], ["a"]), helper.make_node("MatMul", ["a", "same.weight"], ["y"])], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
            [numpy_helper.from_array(np.eye(4, dtype=np.float32), "same.weight")],
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
        ).SerializeToString()
        names = [one.name for one in layers(onnx.load_from_string(prepare(model)).graph)]
        assert len(set(names)) == 2
        assert all(name.startswith("MatMul") for name in names)

    @pytest.mark.parametrize(("keepdims", "opset"), [(0, 18), (1, 18), (1, 13)])
    def test_a_mean_over_the_image_becomes_a_pooling_with_the_same_answer(self, keepdims, opset):
        constants = [numpy_helper.from_array(np.array([-1, 2]), "axes")] if opset == 18 else []
        inputs, more = (["x", "axes"], {}) if opset == 18 else (["x"], {"axes": [2, 3]})
        shape = ["n", 3, 1, 1] if keepdims else ["n", 3]
        graph = helper.make_graph(
            [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("ReduceMean", ["r", *inputs[1:]], ["y"], keepdims=keepdims, **more)], "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 4, 5])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], constants,
        )  # fmt: skip
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        ).SerializeToString()
        x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
        after = prepare(model)
        assert "GlobalAveragePool" in operators(after)
        np.testing.assert_allclose(answers(after, x), answers(model, x), rtol=1e-5, atol=1e-6)


def test_weights_that_float16_cannot_hold_stay_float32():
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "layer")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(np.eye(8, dtype=np.float32) * 1e5, "w")],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
    ).SerializeToString()
    eye = np.eye(8, dtype=np.float32)
    np.testing.assert_array_equal(answers(quantize(prepare(model), eye, Float16()), eye), eye * 1e5)
