"""Tiny real bundles of any ONNX model, good ones and such that hang, take all memory, or answer wrongly."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml import golden
from edgeml.bundle import GOLDEN, write_bundle
from edgeml.ids import digest_of, digest_of_file
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, Task
from edgeml.runtime import open_session
from edgeml.testing import linear_model

CLASSES = 3
FEATURES = 4


def bundle(path, version, content, answers=None, like=None):
    """Write a bundle of an ONNX model `x` [batch, 4] to `logits` [batch, 3]; return its digest.

    Args:
        content: the model.
        answers: what its golden vectors say it answers, for one request of each row of ones; by default `like`'s.
        like: a model whose tensors it has, and that answers quickly; by default the model itself.
    """
    session = open_session(like or content, RuntimeFamily.ONNX)
    asked = np.ones((golden.SAMPLES, FEATURES), np.float32)
    recorded = session.run([asked])[0] if answers is None else answers
    manifest = Manifest(
        model="sample",
        version=version,
        variant="onnx-fp32",
        runtime=RuntimeFamily.ONNX,
        profiles=("generic-x86-64",),
        inputs=session.inputs,
        outputs=session.outputs,
        files=(),
        measurement=Measurement("not measured", session.runtime.split()[0], 1, 0.0, 0.0, 0),
        provenance=Provenance("sample", digest_of(content)),
        task=Task.CLASSIFICATION,
        labels=("a", "b", "c"),
    )
    members = {"model.onnx": content, GOLDEN: golden.encode(golden.Golden((asked,), (recorded,)))}
    write_bundle(path, manifest, members)
    return digest_of_file(path)


def wrong(path, version, seed=5):
    """A bundle whose model does not answer as its golden vectors say."""
    answers = np.tile(np.float32([100, -100, 0]), (golden.SAMPLES, 1))
    return bundle(path, version, linear_model(seed), answers)


def hanging(path, version):
    """A bundle whose model counts to 2**60 before it answers."""
    return bundle(path, version, looping_model(1 << 60), like=linear_model(0))


def big(path, version, size_bytes):
    """A bundle whose model takes this much memory for every answer, and answers right."""
    return bundle(path, version, spreading_model(size_bytes), like=linear_model(0))


def looping_model(count):
    """ONNX: the linear model, after a Loop of so many steps."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_in"], ["go_out"]),
            helper.make_node("Cos", ["v_in"], ["v_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("step", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_in", TensorProto.FLOAT, ["batch", FEATURES]),
        ],
        [
            helper.make_tensor_value_info("go_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_out", TensorProto.FLOAT, ["batch", FEATURES]),
        ],
    )
    nodes = [
        helper.make_node("Loop", ["count", "go", "x"], ["turned"], body=body),
        helper.make_node("MatMul", ["turned", "w"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.int64(count), "count"),
        numpy_helper.from_array(np.bool_(True), "go"),
        numpy_helper.from_array(np.ones((FEATURES, CLASSES), np.float32), "w"),
    ]
    return _model(nodes, constants)


def spreading_model(size_bytes):
    """ONNX: the linear model, and beside it a tensor of `size_bytes` whose sum counts for nothing."""
    generator = np.random.default_rng(0)
    weights = generator.normal(size=(FEATURES, CLASSES)).astype(np.float32)
    nodes = [
        # Of the input, so that it cannot be computed once and for all when the model is loaded.
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "size"], ["wide"]),
        helper.make_node("ReduceMax", ["wide"], ["one"], keepdims=0),
        helper.make_node("Mul", ["one", "nothing"], ["none"]),
        helper.make_node("MatMul", ["x", "w"], ["plain"]),
        helper.make_node("Add", ["plain", "none"], ["logits"]),
    ]
    constants = [
        numpy_helper.from_array(np.int64([size_bytes // 4]), "size"),
        numpy_helper.from_array(np.float32(0), "nothing"),
        numpy_helper.from_array(weights, "w"),
    ]
    return _model(nodes, constants)


def _model(nodes, constants):
    graph = helper.make_graph(
        nodes,
        "faulty",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        constants,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10, producer_name="edgeml"
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()
