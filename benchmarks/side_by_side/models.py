"""Models with little to compute and inputs of a chosen size, and one that takes about a quarter of a millisecond."""

from itertools import pairwise

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from edgeml.bundle import MONITOR, write_bundle
from edgeml.ids import digest_of
from edgeml.manifest import Manifest, Measurement, Provenance, RuntimeFamily, ScoreKind, Task
from edgeml.monitor import encode
from edgeml.reference import build_monitor
from edgeml.runtime import open_session

FEATURES = 1024
CLASSES = 10
SIDE = 32
CHANNELS = (1, 40, 72, 96)
COUNTED = "convolutional"
"""The model that is served over HTTP, with a monitor."""
FLOATS = {"1 KB": 256, "150 KB": 37_500, "1 MB": 262_144}


def _finished(nodes, name, given, gives, weights):
    graph = helper.make_graph(
        nodes, name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return made.SerializeToString()


def slicing(floats):
    """An .onnx model that returns the first ten of its numbers: next to nothing but the call itself."""
    numbers = {"from": [0], "to": [CLASSES], "axis": [1]}
    node = helper.make_node("Slice", ["x", *numbers], ["y"])
    weights = {key: np.array(value) for key, value in numbers.items()}
    return _finished([node], "slice", ["batch", floats], ["batch", CLASSES], weights)


def convolutional():
    """An .onnx model that takes 4 KB and about 0.23 ms on the machine it was chosen on.

    Its weights are small, as a device's are: those of a model as slow as that by its size alone (15 MB) lie in a cache
    that other machines on the same host share, and it took two to three times as long whenever it was not asked at once.
    """
    generator = np.random.default_rng(0)
    weights = {"image": np.array([-1, 1, SIDE, SIDE]), "row": np.array([-1, CHANNELS[-1]])}
    nodes = [helper.make_node("Reshape", ["x", "image"], ["layer 0"])]
    for i, (taken, given) in enumerate(pairwise(CHANNELS)):
        key, before, after = f"weights {i}", f"layer {i}", f"layer {i + 1}"
        weights[key] = (generator.normal(size=(given, taken, 3, 3)) / np.sqrt(9 * taken)).astype(np.float32)
        step = {"kernel_shape": [3, 3], "strides": [1 if i == 0 else 2] * 2, "pads": [1] * 4}
        nodes += [
            helper.make_node("Conv", [before, key], [f"sum {i}"], **step),
            helper.make_node("Relu", [f"sum {i}"], [after]),
        ]
    weights["last"] = generator.normal(size=(CHANNELS[-1], CLASSES)).astype(np.float32)
    nodes += [
        helper.make_node("GlobalAveragePool", [f"layer {len(CHANNELS) - 1}"], ["pooled"]),
        helper.make_node("Reshape", ["pooled", "row"], ["features"]),
        helper.make_node("MatMul", ["features", "last"], ["y"]),
    ]
    return _finished(nodes, COUNTED, ["batch", FEATURES], ["batch", CLASSES], weights)


def _graph(names, shapes, kind, options, numbers=()):
    """A .tflite model of one operator, written with the format's own schema.

    The first name is what it takes, the last what it gives; between them are the constants `numbers`.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model, graph, operator, code = (
        schema.ModelT(), schema.SubGraphT(), schema.OperatorT(), schema.OperatorCodeT()
    )  # fmt: skip
    model.buffers, graph.tensors = [schema.BufferT()], []
    for name, shape in zip(names, shapes, strict=True):
        made = schema.TensorT()
        made.name, made.shape, made.type, made.buffer = name, shape, schema.TensorType.FLOAT32, 0
        graph.tensors.append(made)
    for made, values in zip(graph.tensors[1:-1], numbers, strict=True):
        constant = schema.BufferT()
        constant.data = np.array(values, np.int32).view(np.uint8)
        made.type, made.buffer = schema.TensorType.INT32, len(model.buffers)
        model.buffers.append(constant)
    last = len(names) - 1
    operator.inputs, operator.outputs = (list(range(last)) if numbers else [0, 0]), [last]
    operator.builtinOptionsType, operator.builtinOptions = options
    code.builtinCode = code.deprecatedBuiltinCode = kind
    code.version = 1
    graph.inputs, graph.outputs, graph.operators = [0], [last], [operator]
    model.version, model.operatorCodes, model.subgraphs = 3, [code], [graph]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def doubling(floats):
    """A .tflite model that returns its input doubled: as many bytes back as there came."""
    from ai_edge_litert import schema_py_generated as schema

    options = schema.BuiltinOptions.AddOptions, schema.AddOptionsT()
    return _graph([b"x", b"y"], [[1, floats]] * 2, schema.BuiltinOperator.ADD, options)


def beginning(floats):
    """A .tflite model that returns the first ten of its numbers: next to nothing but the call itself."""
    from ai_edge_litert import schema_py_generated as schema

    options = schema.BuiltinOptions.SliceOptions, schema.SliceOptionsT()
    return _graph(
        [b"x", b"from", b"count", b"y"], [[1, floats], [2], [2], [1, CLASSES]], schema.BuiltinOperator.SLICE,
        options, [[0, 0], [1, CLASSES]],
    )  # fmt: skip


def bundle(path, name, model, family=RuntimeFamily.ONNX):
    """Write a bundle as a device gets it, with a monitor where there are classes; return a bare session of its model."""
    session = open_session(model, family)
    counted = name == COUNTED
    manifest = Manifest(
        name, "1.0.0", f"{family.value}-fp32", family, ("generic-x86-64",), session.inputs, session.outputs, (),
        Measurement("", "", 1, 1.0, 1.0, 0), Provenance("", digest_of(model)),
        task=Task.CLASSIFICATION if counted else Task.OTHER, scores=ScoreKind.LOGITS if counted else ScoreKind.NONE,
    )  # fmt: skip
    members = {"model.onnx" if family is RuntimeFamily.ONNX else "model.tflite": model}
    if counted:
        samples = np.random.default_rng(1).normal(size=(500, FEATURES)).astype(np.float32)
        answers = session.run([samples])[0]
        members[MONITOR] = encode(build_monitor(manifest, {"x": samples}, {"y": answers}))
    write_bundle(path, manifest, members)
    return session
