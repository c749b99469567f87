"""Constants of hostile files: what would become larger than the file can mean is refused before it is made."""

import resource
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters import weights
from converters.scaling import Scaling, reals_of, to_reals
from converters.weights import Naming, read_weights
from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily

from .tflite_file import File

ROOM_BYTES = 4 << 30
"""More than any file here needs; less than any of the hostile ones wants."""


@pytest.fixture(autouse=True)
def little_room():
    """Have what is too large refused by the system, too: a test that fails is not to fill the machine."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def onnx_file(node, constants):
    graph = helper.make_graph(
        [node, helper.make_node("MatMul", ["x", "d"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return model.SerializeToString()


def dequantized(values, scale, zero, **attributes):
    node = helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"], **attributes)
    return onnx_file(node, {"w": values, "s": scale, "z": zero})


FEW = np.zeros((8, 2), np.int8)
ONE, NONE = np.ones((), np.float32), np.zeros((), np.int8)
HOSTILE = {
    "a zero point of another shape": dequantized(
        np.zeros((200_000, 1), np.int8), ONE, np.zeros(200_000, np.int8)
    ),
    "a scale of more dimensions": dequantized(FEW, np.ones((9, 8, 2), np.float32), NONE),
    "a zero point of more dimensions": dequantized(FEW, ONE, np.zeros((9, 1, 1), np.int8)),
    "blocks of what are no blocks": dequantized(
        np.zeros((1, 200_000), np.int8), np.ones((1, 200_000), np.float32), NONE, axis=1, block_size=200_000
    ),
    "blocks along the other axis": dequantized(
        np.zeros((200_000, 2), np.int8), np.ones((1, 200_000), np.float32), NONE, axis=0, block_size=200_000
    ),
    "blocks of less than nothing": dequantized(FEW, np.ones((8, 2), np.float32), NONE, axis=1, block_size=-1),
}


@pytest.mark.parametrize("naming", Naming)
@pytest.mark.parametrize("model", HOSTILE.values(), ids=HOSTILE)
def test_scales_that_spread_beyond_the_tensor_are_refused(model, naming):
    with pytest.raises(BackendError, match="fit its"):
        read_weights(model, RuntimeFamily.ONNX, naming)


def test_a_product_of_scales_that_spreads_beyond_the_tensor_is_refused():
    known = {"a": np.ones((200_000, 1), np.float32), "b": np.ones((1, 200_000), np.float32)}
    with pytest.raises(ValueError, match="fit its"):
        reals_of(np.zeros(8, np.int32), Scaling(("a", "b"), "", 0), known)


@pytest.mark.parametrize("form", [(), (1,), (1, 1, 1)])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_one_scale_of_any_form_is_one_for_all(shape, form):
    found = to_reals(np.full(shape, 5, np.int8), np.full(form, 0.5), np.full(form, 1), 0)
    np.testing.assert_array_equal(found, np.full(shape, 2.0))
    assert found.shape == shape


def test_the_last_block_may_be_shorter():
    model = dequantized(
        np.ones((2, 5), np.int8), np.array([[1, 10], [2, 20]], np.float32), np.zeros((2, 2), np.int8),
        axis=1, block_size=3,
    )  # fmt: skip
    [found] = read_weights(model, RuntimeFamily.ONNX)
    np.testing.assert_array_equal(found.values, [[1, 1, 1, 10, 10], [2, 2, 2, 20, 20]])


def shared_buffer(tensors, elements):
    file = File("float32")
    at = file.tensor([elements], values=np.zeros(elements))
    for _ in range(tensors - 1):
        file.tensors[file.tensor([elements])].buffer = file.tensors[at].buffer
    return file.bytes([at])


def test_tensors_may_share_a_buffer_but_not_without_end():
    assert len(read_weights(shared_buffer(8, 1000), RuntimeFamily.TFLITE)) == 8
    model = shared_buffer(2000, 250_000)
    assert len(model) < 2 << 20
    with pytest.raises(BackendError, match="damaged"):
        read_weights(model, RuntimeFamily.TFLITE)


@pytest.mark.parametrize("naming", Naming)
def test_a_constant_in_another_file_is_not_looked_for(tmp_path, monkeypatch, naming):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_bytes(bytes(16))
    value = TensorProto(name="v", data_type=TensorProto.FLOAT, dims=[4])
    value.data_location = TensorProto.EXTERNAL
    value.external_data.add(key="location", value="secret")
    with pytest.raises(BackendError, match="in another file"):
        read_weights(
            onnx_file(helper.make_node("Constant", [], ["d"], value=value), {}), RuntimeFamily.ONNX, naming
        )


@pytest.mark.parametrize(
    ("family", "naming"),
    [
        (RuntimeFamily.ONNX, Naming.NAME),
        (RuntimeFamily.ONNX, Naming.READER),
        (RuntimeFamily.TFLITE, Naming.NAME),
    ],
)
def test_what_the_machine_has_no_room_for_is_told(monkeypatch, family, naming):
    def full(*_):
        raise MemoryError("Unable to allocate 9 GiB")

    monkeypatch.setattr(numpy_helper, "to_array", full)
    monkeypatch.setattr(weights, "_tflite_weight", full)
    model = HOSTILE["a scale of more dimensions"] if family is RuntimeFamily.ONNX else shared_buffer(1, 1)
    with pytest.raises(BackendError, match="damaged") as caught:
        read_weights(model, family, naming)
    assert caught.value.hint
