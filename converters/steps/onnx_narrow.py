"""Weights of an ONNX file in fewer bits, computed with in float, and scales that need half the bytes.

Decides how integers and float16 are written so that every runtime turns them into float32 once, when it loads the file:
by Cast, Mul and, for two weights in a byte, BitShift and BitwiseAnd, all of which are folded as constants. Which weights
are worth it: those of layers (`onnx_layers.py`).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeml.errors import ConfigError

from ..opset import NIBBLE_OPSET
from .onnx_layers import Layer, layers

_HALF_ERROR_MAX: Final = 2.0**-11
"""Rounding error of a number that float16 holds in full precision; smaller ones lose more, and are left as they are."""
_SMALL: Final = 64
"""Weights with fewer numbers stay: what unpacks them is as long as they are."""
_MANY_SCALES: Final = 32
"""Fewer are as long in float32 as in float16 with a Cast."""
"""Since when ONNX has BitwiseAnd."""

Floats = npt.NDArray[np.float32]


def store_as_float16(model: bytes) -> bytes:
    """Store the weights of float layers as float16 and compute in float32. Weights that float16 cannot hold stay.

    For a whole model, or for what a static step left in float.
    """
    import onnx
    from onnx import helper, numpy_helper

    proto = onnx.load_from_string(model)
    graph = proto.graph
    tensors = {one.name: one for one in graph.initializer}
    added = []
    for layer in _worth_it(graph):
        with np.errstate(over="ignore"):
            half = numpy_helper.to_array(tensors[layer.weight]).astype(np.float16)
        if np.isfinite(half).all():
            _take(graph, layer.weight)
            narrow = f"{layer.weight}/float16"
            graph.initializer.append(numpy_helper.from_array(half, narrow))
            added.append(helper.make_node("Cast", [narrow], [layer.weight], to=onnx.TensorProto.FLOAT))
    return _with_nodes_first(proto, added)


def store_as_integers(prepared: bytes, bits: int) -> bytes:
    """Store weights as integers of 8 or 4 bits with one scale for each output channel, and compute in float32.

    Raises:
        ConfigError: `bits` is neither, or 4 and the model's opset is below 18.
    """
    import onnx
    from onnx import helper, numpy_helper

    if bits not in {8, 4}:
        raise ConfigError(f"weights of {bits} bits are not to be had", hint="weight-only recipes have 8 or 4")
    proto = onnx.load_from_string(prepared)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    if bits == 4 and versions[""] < NIBBLE_OPSET:
        raise ConfigError(
            "weights of 4 bits need ONNX opset 18", hint="export with opset 18, or store 8 bits"
        )
    graph = proto.graph
    added: list[Any] = []
    axes = _output_axes(graph)
    for layer in _worth_it(graph):
        name = layer.weight
        values = numpy_helper.to_array(_take(graph, name)).astype(np.float32)
        integers, scale = _round(values, axes[name], bits)
        if scale.dtype == np.float16:
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}/half"))
            added.append(
                helper.make_node("Cast", [f"{name}/half"], [f"{name}/scale"], to=onnx.TensorProto.FLOAT)
            )
        else:
            graph.initializer.append(numpy_helper.from_array(scale, f"{name}/scale"))
        if bits == 4:
            added += _unpacking(graph, name, integers)
        else:
            graph.initializer.append(numpy_helper.from_array(integers, f"{name}/integers"))
        added.append(
            helper.make_node("Cast", [f"{name}/integers"], [f"{name}/cast"], to=onnx.TensorProto.FLOAT)
        )
        added.append(helper.make_node("Mul", [f"{name}/cast", f"{name}/scale"], [name]))
    return _with_nodes_first(proto, added)


def halve_scales(graph: Any) -> None:
    """Round the scales of integer weights to float16 numbers, so that `onnx_compact.py` can store them in half the bytes.

    Biases are integers of scale (input scale x weight scale), so they are rounded anew. A scale moves by less than a
    two-thousandth, a tenth of what rounding a weight to int8 does.
    """
    from onnx import numpy_helper

    tensors = {one.name: one for one in graph.initializer}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    for node in graph.node:
        bias_place = {"QLinearConv": 8, "QGemm": 6}.get(node.op_type)
        if bias_place is None or node.input[4] not in tensors or readers[node.input[4]] > 1:
            continue
        scale = tensors[node.input[4]]
        values = numpy_helper.to_array(scale).astype(np.float32)
        rounded = _halved(values)
        if rounded is None:
            continue
        half = rounded.astype(np.float32)
        if len(node.input) > bias_place and node.input[bias_place]:
            bias = tensors.get(node.input[bias_place])
            if bias is None or readers[bias.name] > 1:
                continue
            moved = np.round(numpy_helper.to_array(bias) * (values.astype(np.float64) / half)).astype(
                np.int32
            )
            bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
        scale.CopyFrom(numpy_helper.from_array(half, scale.name))


def _worth_it(graph: Any) -> list[Layer]:
    from onnx import TensorProto

    tensors = {one.name: one for one in graph.initializer}
    kept: dict[str, Layer] = {}
    for layer in layers(graph):
        weight = tensors[layer.weight]
        if weight.data_type == TensorProto.FLOAT and np.prod(weight.dims) >= _SMALL:
            kept.setdefault(layer.weight, layer)
    return list(kept.values())


def _output_axes(graph: Any) -> dict[str, int]:
    """Along which axis of each layer's weights its output channels lie."""
    axes: dict[str, int] = {}
    for node in graph.node:
        if len(node.input) > 1:
            transposed = next((one.i for one in node.attribute if one.name == "transB"), 0)
            is_first = node.op_type == "Conv" or (node.op_type == "Gemm" and transposed)
            axes.setdefault(node.input[1], 0 if is_first else (1 if node.op_type == "ConvTranspose" else -1))
    return axes


def _round(
    values: Floats, axis: int, bits: int
) -> tuple[npt.NDArray[np.int8], Floats | npt.NDArray[np.float16]]:
    """Round symmetrically: integers of `bits` bits of the same shape, and scales that broadcast over them.

    Scales are float16 where there are many and none loses more than its rounding.
    """
    highest = 2 ** (bits - 1) - 1
    others = tuple(one for one in range(values.ndim) if one != axis % values.ndim)
    greatest = np.abs(values).max(axis=others, keepdims=True)
    scale = np.where(greatest > 0, greatest / highest, 1.0).astype(np.float32)
    half = _halved(scale) if scale.size >= _MANY_SCALES else None
    used = scale if half is None else half.astype(np.float32)
    integers = np.clip(np.round(values / used), -highest, highest).astype(np.int8)
    return integers, scale if half is None else half


def _halved(scale: Floats) -> npt.NDArray[np.float16] | None:
    """Round scales to float16; None if one is too small or too large for its full precision."""
    with np.errstate(over="ignore"):
        half = scale.astype(np.float16)
    exact = np.abs(half.astype(np.float32) - scale) <= _HALF_ERROR_MAX * scale
    return half if exact.all() else None


def _unpacking(graph: Any, name: str, integers: npt.NDArray[np.int8]) -> list[Any]:
    """Put two weights into a byte, the first below, and give the nodes that take them apart again."""
    from onnx import TensorProto, helper, numpy_helper

    flat = (integers.ravel() + 8).astype(np.uint8)
    count = len(flat)
    padded = np.append(flat, np.zeros(count % 2, np.uint8)).reshape(-1, 2)
    packed = (padded[:, 0] | padded[:, 1] << 4).reshape(-1, 1).astype(np.uint8)
    for suffix, value in (
        ("packed", packed),
        ("four", np.array([4], np.uint8)),
        ("low", np.array([15], np.uint8)),
        ("count", np.array([count], np.int64)),
        ("zero", np.array([0], np.int64)),
        ("shape", np.array(integers.shape, np.int64)),
        ("flat_shape", np.array([-1], np.int64)),
        ("eight", np.array([8], np.int8)),
    ):
        graph.initializer.append(numpy_helper.from_array(value, f"{name}/{suffix}"))
    made = helper.make_node
    return [
        made("BitwiseAnd", [f"{name}/packed", f"{name}/low"], [f"{name}/even"]),
        made("BitShift", [f"{name}/packed", f"{name}/four"], [f"{name}/odd"], direction="RIGHT"),
        made("Concat", [f"{name}/even", f"{name}/odd"], [f"{name}/pairs"], axis=1),
        made("Reshape", [f"{name}/pairs", f"{name}/flat_shape"], [f"{name}/flat"]),
        made("Slice", [f"{name}/flat", f"{name}/zero", f"{name}/count"], [f"{name}/cut"]),
        made("Reshape", [f"{name}/cut", f"{name}/shape"], [f"{name}/shaped"]),
        made("Cast", [f"{name}/shaped"], [f"{name}/signed"], to=TensorProto.INT8),
        made("Sub", [f"{name}/signed", f"{name}/eight"], [f"{name}/integers"]),
    ]


def _take(graph: Any, name: str) -> Any:
    """Take an initializer out of a graph."""
    from onnx import TensorProto

    place = next(index for index, one in enumerate(graph.initializer) if one.name == name)
    tensor = TensorProto()
    tensor.CopyFrom(graph.initializer[place])
    del graph.initializer[place]
    return tensor


def _with_nodes_first(proto: Any, added: list[Any]) -> bytes:
    kept = [type(one).FromString(one.SerializeToString(deterministic=True)) for one in proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend([*added, *kept])
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
