"""Surgery on ONNX graphs of small translated models: one output kept, names that are always the same, columns in order.

Decides how a graph is changed in place. Which change a model needs is the business of whoever translated it. Works on
ModelProto as `onnx` parses it; nodes are in the order in which they run, as the specification (IR.md) demands.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

import numpy as np

BATCH_NAME: Final = "batch"


def keep_last_output(proto: Any, name: str) -> None:
    """Keep the last output, under `name`, and drop all that only the others need."""
    graph = proto.graph
    old = graph.output[-1].name
    del graph.output[:-1]
    needed = {old}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            needed |= _read_by(node)
            kept.append(node)
    _refill(graph.node, kept[::-1])
    _refill(graph.initializer, [one for one in graph.initializer if one.name in needed])
    del graph.value_info[:]
    _rename_all(graph, {old: name})


def unfold_scalers(proto: Any) -> None:
    """Write each Scaler as the difference and the quotient that it stands for: onnx infers no shapes through a Scaler.

    What follows it could not be counted then, and some recipes not be made. A quotient has no integer form, a product has:
    it would squeeze features of all sizes into one scale.
    """
    import onnx

    graph = proto.graph
    nodes: list[Any] = []
    for place, node in enumerate(graph.node):
        values = {one.name: np.array(one.floats, np.float32) for one in node.attribute}
        if node.op_type != "Scaler" or set(values) != {"offset", "scale"} or not values["scale"].all():
            nodes.append(node)
            continue
        offset, scale, between = (f"scaler_{place}_{word}" for word in ("offset", "scale", "centred"))
        graph.initializer.append(onnx.numpy_helper.from_array(values["offset"], offset))
        graph.initializer.append(onnx.numpy_helper.from_array(1 / values["scale"], scale))
        nodes.append(onnx.helper.make_node("Sub", [node.input[0], offset], [between], between))
        nodes.append(onnx.helper.make_node("Div", [between, scale], [node.output[0]], node.name))
    _refill(graph.node, nodes)


def number_names(proto: Any) -> None:
    """Name nodes and inner values by their order: converters count on from what they converted before."""
    graph = proto.graph
    fixed = {one.name for one in (*graph.input, *graph.output)}
    names: dict[str, str] = {"": ""}
    for index, name in enumerate(dict.fromkeys(_names_of(graph))):
        names.setdefault(name, name if name in fixed else f"v{index}")
    _rename_all(graph, names)
    for index, node in enumerate(_nodes_of(graph)):
        node.name = f"{node.op_type}_{index}"


def mirror_column(proto: Any) -> None:
    """Make two columns of the one output's only one: its negative, and itself."""
    import onnx

    name = _free_output(proto)
    proto.graph.node.extend(
        [
            onnx.helper.make_node("Neg", ["inner"], ["against"]),
            onnx.helper.make_node("Concat", ["against", "inner"], [name], axis=1),
        ]
    )


def swap_columns(proto: Any) -> None:
    """Put the one output's two columns the other way round."""
    import onnx

    name = _free_output(proto)
    proto.graph.initializer.append(onnx.helper.make_tensor("swapped", onnx.TensorProto.INT64, [2], [1, 0]))
    proto.graph.node.append(onnx.helper.make_node("Gather", ["inner", "swapped"], [name], axis=1))


def state_shapes(proto: Any, columns: int) -> None:
    """State that the input's batch is free, and that the output is [batch, columns]."""
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = BATCH_NAME
    shape = proto.graph.output[0].type.tensor_type.shape
    del shape.dim[:]
    shape.dim.add().dim_param = BATCH_NAME
    shape.dim.add().dim_value = columns


def _free_output(proto: Any) -> str:
    """Give the values of the output to the name `inner`; return the output's own, which is nobody's then."""
    name = str(proto.graph.output[0].name)
    for node in proto.graph.node:
        _replace(node.output, {name: "inner"})
        _replace(node.input, {name: "inner"})
    return name


def _read_by(node: Any) -> set[str]:
    """Names that a node reads, those that its subgraphs take from outside too."""
    found = set(node.input)
    for graph in _inner_graphs(node):
        for inner in graph.node:
            found |= _read_by(inner)
        found |= {one.name for one in graph.output}
    return found


def _inner_graphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            if graph.ByteSize():
                yield graph


def _nodes_of(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for inner in _inner_graphs(node):
            yield from _nodes_of(inner)


def _graphs_of(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for inner in _inner_graphs(node):
            yield from _graphs_of(inner)


def _names_of(graph: Any) -> Iterator[str]:
    for one in _graphs_of(graph):
        yield from (value.name for value in one.input)
        yield from (tensor.name for tensor in one.initializer)
        for node in one.node:
            yield from (*node.input, *node.output)
        yield from (value.name for value in one.output)


def _rename_all(graph: Any, names: dict[str, str]) -> None:
    for one in _graphs_of(graph):
        one.name = "model"
        for named in (*one.input, *one.initializer, *one.output):
            named.name = names.get(named.name, named.name)
        for node in one.node:
            _replace(node.input, names)
            _replace(node.output, names)


def _replace(field: Any, names: dict[str, str]) -> None:
    for index, name in enumerate(field):
        field[index] = names.get(name, name)


def _refill(field: Any, kept: list[Any]) -> None:
    copies = [copy.deepcopy(one) for one in kept]
    del field[:]
    field.extend(copies)
