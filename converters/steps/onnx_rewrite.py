"""Graphs that say the same in operators that onnxruntime has in integers.

Decides which float operators are replaced before a model is quantized, and what is taken off its end after. A mean over
the image has no integer form, the global average pool has: with the mean, a quantized network goes back to float, changes
its layout, averages, and is quantized again. The last linear layer can answer in float by itself.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

_SPATIAL_RANK: Final = 4
_RANGE_INPUTS: Final = 7
"""Inputs of QGemm before the scale and zero point of its output."""
_REQUANTIZED: Final = frozenset({"Conv", "ConvTranspose", "Gemm"})
_DEQUANTIZE_INPUTS: Final = 3


def name_nodes(graph: Any) -> None:
    """Give nodes without a name one, by operator and place: layers are left out by name."""
    taken = {node.name for node in graph.node}
    for place, node in enumerate(graph.node):
        if not node.name:
            name = f"{node.op_type}_{place}"
            while name in taken:
                name += "_"
            node.name = name
            taken.add(name)


def pool_means(graph: Any) -> None:
    """Write a mean over height and width as a global average pool."""
    from onnx import helper

    ranks = {
        one.name: len(one.type.tensor_type.shape.dim)
        for one in (*graph.value_info, *graph.input, *graph.output)
        if one.type.tensor_type.HasField("shape")
    }
    tensors = {one.name: one for one in graph.initializer}
    written = []
    for node in graph.node:
        if not _is_spatial_mean(node, ranks, tensors):
            written.append(node)
            continue
        source, target = node.input[0], node.output[0]
        if _attribute(node, "keepdims", 1):
            written.append(helper.make_node("GlobalAveragePool", [source], [target], node.name))
        else:
            pooled = f"{target}/pooled"
            written.append(helper.make_node("GlobalAveragePool", [source], [pooled], node.name))
            written.append(helper.make_node("Flatten", [pooled], [target], f"{node.name}/flat", axis=1))
    copies = [type(one).FromString(one.SerializeToString(deterministic=True)) for one in written]
    del graph.node[:]
    graph.node.extend(copies)


def flatten_biases(graph: Any) -> None:
    """Write a bias [1, n] of a linear layer as [n], as integer layers want it; scikit-learn's become two-dimensional."""
    biases = {node.input[2] for node in graph.node if node.op_type == "Gemm" and len(node.input) > 2}
    others = {
        name
        for node in graph.node
        for place, name in enumerate(node.input)
        if node.op_type != "Gemm" or place != 2
    }
    for tensor in graph.initializer:
        if tensor.name in biases - others and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]


def answer_in_float(graph: Any) -> None:
    """Let an integer linear layer that nothing integer follows answer in float: one operator less, and no rounding."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    visible = {one.name for one in graph.output}
    dropped = []
    for node in graph.node:
        after = readers.get(node.output[0], [])
        if (
            node.op_type == "QGemm"
            and node.output[0] not in visible
            and len(after) == 1
            and after[0].op_type == "DequantizeLinear"
        ):
            del node.input[_RANGE_INPUTS:]
            node.output[0] = after[0].output[0]
            dropped.append(after[0])
    for node in dropped:
        graph.node.remove(node)


def hold_in_float(graph: Any) -> None:
    """Keep float layers between integer ones in float, by dequantizing their input with the same scale for each channel."""
    from onnx import helper, numpy_helper

    tensors = {one.name: one for one in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    written = []
    for node in graph.node:
        source = makers.get(node.input[0]) if node.op_type in _REQUANTIZED else None
        if (
            source is None
            or source.op_type != "DequantizeLinear"
            or len(source.input) < _DEQUANTIZE_INPUTS
            or node.input[1] not in tensors
            or tensors[source.input[1]].dims
        ):
            written.append(node)
            continue
        channels = _input_channels(node, tensors[node.input[1]].dims)
        name = f"{node.output[0]}/held"
        for place, suffix in ((1, "scale"), (2, "zero")):
            value = numpy_helper.to_array(tensors[source.input[place]])
            graph.initializer.append(numpy_helper.from_array(np.full(channels, value), f"{name}/{suffix}"))
        held = helper.make_node(
            "DequantizeLinear", [source.input[0], f"{name}/scale", f"{name}/zero"], [name], f"{name}/node", axis=1,
            domain=source.domain,
        )  # fmt: skip
        node.input[0] = name
        written += [held, node]
    copies = [type(one).FromString(one.SerializeToString(deterministic=True)) for one in written]
    del graph.node[:]
    graph.node.extend(copies)


def _input_channels(node: Any, dims: Any) -> int:
    if node.op_type == "Gemm":
        return int(dims[1 if _attribute(node, "transB", 0) else 0])
    groups = 1 if node.op_type == "ConvTranspose" else _attribute(node, "group", 1)
    return int(dims[0 if node.op_type == "ConvTranspose" else 1] * groups)


def _is_spatial_mean(node: Any, ranks: dict[str, int], tensors: dict[str, Any]) -> bool:
    from onnx import numpy_helper

    if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != _SPATIAL_RANK:
        return False
    if len(node.input) > 1:
        axes = tensors.get(node.input[1])
        found = [] if axes is None else numpy_helper.to_array(axes).ravel().tolist()
    else:
        found = _attribute(node, "axes", [])
    return sorted(axis % _SPATIAL_RANK for axis in found) == [2, 3]


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), default)
