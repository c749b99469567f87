"""The runtime adapters: what they say of a model, what they answer, what they refuse."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime
from edgeml.runtime import RUNTIME_PACKAGES, installed_runtimes, open_session
from edgeml.tensors import BATCH, DType
from edgeml.testing import linear_model

ROOT = Path(__file__).parents[2]


def identity(element_type, shape=(1,)):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", element_type, shape)],
        [helper.make_tensor_value_info("y", element_type, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def test_a_model_says_what_it_takes_and_gives():
    session = open_session(linear_model(), RuntimeFamily.ONNX)
    (taken,), (given,) = session.inputs, session.outputs
    assert (taken.name, taken.dtype, taken.shape) == ("x", DType.FLOAT32, (BATCH, 4))
    assert (given.name, given.dtype, given.shape) == ("logits", DType.FLOAT32, (BATCH, 3))
    assert session.runtime.startswith("onnxruntime ")


def test_answers_do_not_depend_on_batches_or_threads():
    values = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    one, two = (open_session(linear_model(), RuntimeFamily.ONNX, threads) for threads in (1, 2))
    (whole,) = one.run([values])
    (other,) = two.run([values])
    single = np.concatenate([one.run([values[i : i + 1]])[0] for i in range(6)])
    np.testing.assert_allclose(whole, single, rtol=1e-5)
    np.testing.assert_allclose(whole, other, rtol=1e-5)


@pytest.mark.parametrize("dtype", DType)
def test_every_type_that_edgeml_names_is_served(dtype):
    element_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype.value))
    session = open_session(identity(element_type, (3,)), RuntimeFamily.ONNX)
    assert session.inputs[0].dtype is dtype
    array = np.array([0, 1, 1]).astype(dtype.value)
    (answer,) = session.run([array])
    assert answer.dtype == array.dtype
    np.testing.assert_array_equal(answer, array)


@pytest.mark.parametrize("element_type", [TensorProto.STRING, TensorProto.UINT64, TensorProto.COMPLEX64])
def test_types_that_edgeml_does_not_name_are_refused(element_type):
    with pytest.raises(BackendError):
        open_session(identity(element_type), RuntimeFamily.ONNX)


def test_dimensions_without_a_number_are_the_callers_choice():
    session = open_session(identity(TensorProto.FLOAT, ("n", None, 4)), RuntimeFamily.ONNX)
    assert session.inputs[0].shape == (BATCH, BATCH, 4)


NEEDED = {RuntimeFamily.TFLITE: "ai_edge_litert", RuntimeFamily.TORCHSCRIPT: "torch"}


@pytest.mark.parametrize("family", RuntimeFamily)
@pytest.mark.parametrize(
    "data", [b"", b"no model", bytes(1000), linear_model()[:-40]], ids=["empty", "text", "zeros", "cut"]
)
def test_bytes_that_are_no_model_are_one_line_of_a_backend_error(family, data):
    if family in NEEDED:
        pytest.importorskip(NEEDED[family])
    # torch is used by none who does not name it.
    named = DeviceRuntime.TORCH if family is RuntimeFamily.TORCHSCRIPT else None
    with pytest.raises(BackendError, match="cannot load the model") as caught:
        open_session(data, family, runtime=named)
    assert "\n" not in caught.value.message


def relu(opset=17, ir_version=8, element="FLOAT"):
    from onnx import TensorProto, helper

    kind = getattr(TensorProto, element)
    given, made = (helper.make_tensor_value_info(name, kind, ["n", 4]) for name in ("a", "y"))
    node = helper.make_node("Relu" if element == "FLOAT" else "Identity", ["a"], ["y"])
    graph = helper.make_graph([node], "g", [given], [made])
    imports = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version).SerializeToString()


@pytest.mark.parametrize(
    ("model", "words", "hint"),
    [
        (relu(opset=99), r"cannot load the model: opset 99 of ai\.onnx is newer than it knows \(\d+\)", r"with opset \d+ or an older one"),
        (relu(ir_version=99), r"cannot load the model: Unsupported model IR version: 99", r"set model\.ir_version = \d+ and save it"),
        (relu(element="STRING"), r"a has type tensor\(string\)", "give the model numbers"),
    ],
    ids=["opset", "version", "strings"],
)  # fmt: skip
def test_a_model_that_is_too_new_or_takes_strings_is_told_how_to_export_it(model, words, hint):
    with pytest.raises(BackendError, match=words) as caught:
        open_session(model, RuntimeFamily.ONNX)
    assert not re.search(r"onnxruntime_src|ONNXRuntimeError|::", caught.value.message)
    assert re.search(hint, caught.value.hint)


@pytest.mark.parametrize(
    "inputs",
    [
        [np.zeros((1, 5), np.float32)],
        [np.zeros((1, 4), np.float64)],
        [np.zeros(4, np.float32)],
        [],
        [np.zeros((1, 4), np.float32)] * 2,
    ],
    ids=["width", "type", "rank", "none", "two"],
)
def test_arrays_that_the_model_does_not_take_are_a_backend_error_and_it_lives_on(inputs):
    session = open_session(linear_model(), RuntimeFamily.ONNX)
    with pytest.raises(BackendError, match="onnxruntime") as caught:
        session.run(inputs)
    assert "\n" not in caught.value.message
    assert session.run([np.zeros((1, 4), np.float32)])[0].shape == (1, 3)


def test_installed_runtimes_are_named_without_loading_them():
    assert set(installed_runtimes()) <= set(RUNTIME_PACKAGES)
    code = "from edgeml.runtime import installed_runtimes as i; import sys; i(); print('onnxruntime' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def doubling(element_type, scale=None, zero_point=None):
    """Bytes of a .tflite model: y = x + x over [1, 4], written with the format's own schema."""
    flatbuffers = pytest.importorskip("flatbuffers")
    schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

    def tensor(name):
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = (
            name,
            [1, 4],
            getattr(schema.TensorType, element_type),
            0,
        )
        if scale is not None:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [scale], [zero_point]
        return made

    add, code = schema.OperatorT(), schema.OperatorCodeT()
    add.inputs, add.outputs = [0, 0], [1]
    add.builtinOptionsType, add.builtinOptions = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1
    graph, model = schema.SubGraphT(), schema.ModelT()
    graph.tensors, graph.inputs, graph.outputs, graph.operators = (
        [tensor(b"x"), tensor(b"y")],
        [0],
        [1],
        [add],
    )
    model.version, model.operatorCodes, model.subgraphs, model.buffers = (
        3,
        [code],
        [graph],
        [schema.BufferT()],
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_a_tflite_model_says_what_it_takes_and_answers():
    session = open_session(doubling("FLOAT32"), RuntimeFamily.TFLITE)
    (taken,) = session.inputs
    assert (taken.name, taken.dtype, taken.shape, taken.scale) == ("x", DType.FLOAT32, (1, 4), None)
    (answer,) = session.run([np.array([[1, 2, 3, 4]], np.float32)])
    assert answer.tolist() == [[2, 4, 6, 8]]


def test_a_quantized_tflite_model_says_how_its_integers_stand_for_reals():
    session = open_session(doubling("INT8", 0.5, 3), RuntimeFamily.TFLITE)
    (taken,) = session.inputs
    assert (taken.dtype, taken.scale, taken.zero_point) == (DType.INT8, 0.5, 3)
    (answer,) = session.run([np.array([[3, 5, 7, 9]], np.int8)])  # 0, 1, 2, 3 doubled
    assert answer.tolist() == [[3, 7, 11, 15]]


def test_answers_of_a_tflite_model_outlive_the_next_request():
    session = open_session(doubling("FLOAT32"), RuntimeFamily.TFLITE)
    (first,) = session.run([np.ones((1, 4), np.float32)])
    session.run([np.full((1, 4), 9, np.float32)])
    assert first.tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize(
    "inputs",
    [[np.zeros((1, 5), np.float32)], [np.zeros((1, 4), np.float64)], []],
    ids=["width", "type", "none"],
)
def test_arrays_that_a_tflite_model_does_not_take_are_a_backend_error_and_it_lives_on(inputs):
    session = open_session(doubling("FLOAT32"), RuntimeFamily.TFLITE)
    with pytest.raises(BackendError) as caught:
        session.run(inputs)
    assert "\n" not in caught.value.message
    assert session.run([np.ones((1, 4), np.float32)])[0].tolist() == [[2, 2, 2, 2]]


@pytest.mark.parametrize("element_type", ["STRING", "COMPLEX64"])
def test_tflite_types_that_edgeml_does_not_name_are_refused(element_type):
    with pytest.raises(BackendError):
        open_session(doubling(element_type), RuntimeFamily.TFLITE)
