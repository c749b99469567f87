"""Products of uint8 and int8 are added exactly, on whatever processor this is: with AVX2 alone, onnxruntime's default
saturates at 16 bits, silently."""

import numpy as np
import pytest

from edgeml.probe import probe
from edgeml.runtime import RuntimeFamily, open_session

ROWS, DEPTH, COLUMNS = 3, 64, 16


def product(weights_type, activations_type):
    """A model that multiplies integers [rows, depth] by a constant [depth, columns] of large ones, into int8 or uint8."""
    onnx = pytest.importorskip("onnx")
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    limits = np.iinfo(weights_type)
    weights = np.full((DEPTH, COLUMNS), limits.max, weights_type)
    weights[:, ::2] = limits.min if limits.min < 0 else 1
    # One unit of the answer is more than any sum can be: what is left tells a saturated sum from a whole one.
    scale = np.float32(255 * 127 * DEPTH / 120)
    constants = {
        "one": np.float32(1), "zero_a": activations_type(0), "w": weights, "zero_w": weights_type(0),
        "scale": scale, "zero_y": activations_type(0 if activations_type is np.int8 else 128),
    }  # fmt: skip
    node = helper.make_node(
        "QLinearMatMul", ["x", "one", "zero_a", "w", "one", "zero_w", "scale", "zero_y"], ["y"]
    )
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(activations_type))
    graph = helper.make_graph(
        [node], "product", [helper.make_tensor_value_info("x", kind, ["batch", DEPTH])],
        [helper.make_tensor_value_info("y", kind, ["batch", COLUMNS])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x = np.full((ROWS, DEPTH), np.iinfo(activations_type).max, activations_type)
    exact = np.round(x.astype(np.int64) @ weights.astype(np.int64) / scale) + constants["zero_y"]
    return model.SerializeToString(), x, exact


@pytest.mark.parametrize(
    ("activations", "weights"), [(np.uint8, np.int8), (np.int8, np.int8), (np.uint8, np.uint8)]
)
def test_large_products_are_added_exactly(activations, weights):
    model, x, exact = product(weights, activations)
    limits = np.iinfo(activations)
    answers = open_session(model, RuntimeFamily.ONNX).run([x])[0]
    np.testing.assert_allclose(answers, np.clip(exact, limits.min, limits.max), atol=1)


def test_so_they_are_in_the_child_that_verifies():
    model, x, exact = product(np.int8, np.uint8)
    answers = probe(model, RuntimeFamily.ONNX, [x]).answers[0]
    np.testing.assert_allclose(answers, np.clip(exact, 0, 255), atol=1)
