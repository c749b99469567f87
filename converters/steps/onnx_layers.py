"""The layers of an ONNX graph by names that a person knows.

Decides what a layer is (an operator with constant weights), what it is called, and which tensor shows what it answers.
What is done to a layer is the business of the steps and of `explain/`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edgeml.errors import ConfigError

WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_ACTIVATIONS: Final = frozenset({"Relu", "Clip"})
_WEIGHT_SUFFIX: Final = ".weight"
_CHANNELS_MIN: Final = 4
"""Integer convolutions of onnxruntime take input channels four at a time; with fewer they fall back to slow code."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One operator with weights. `node` is the operator's name in the graph, `name` what people call it.

    `output` is the tensor after the activation that is fused into the layer, if there is one. `is_narrow` says that it
    is a plain convolution with fewer than four input channels, as first layers are: in integers those are often slower
    than in float.
    """

    name: str
    node: str
    operator: str
    parameters: int
    input: str
    output: str
    weight: str
    is_narrow: bool


def layers(graph: Any) -> tuple[Layer, ...]:
    """List the layers of a GraphProto in the order in which they are computed.

    A layer is named after its weights (`l1.c1` for `l1.c1.weight`), or after its node if weights are shared or unnamed.
    """
    tensors = {one.name: one for one in graph.initializer}
    shared = Counter(name for node in graph.node for name in node.input)
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    visible = {one.name for one in graph.output}
    found = []
    for node in graph.node:
        if node.op_type not in WEIGHTED or node.domain or len(node.input) < 2 or node.input[1] not in tensors:
            continue
        weight = tensors[node.input[1]]
        named = weight.name.removesuffix(_WEIGHT_SUFFIX)
        name = named if named != weight.name and shared[weight.name] == 1 else node.name
        output = node.output[0]
        after = readers.get(output, [])
        if output not in visible and len(after) == 1 and after[0].op_type in _ACTIVATIONS:
            output = after[0].output[0]
        parameters = sum(_count(tensors[one].dims) for one in node.input[1:] if one in tensors)
        found.append(
            Layer(
                name,
                node.name,
                node.op_type,
                parameters,
                node.input[0],
                output,
                weight.name,
                _is_narrow(node, weight),
            )
        )
    return tuple(found)


def nodes_of(names: Sequence[str], known: Sequence[Layer]) -> list[str]:
    """Find the nodes of layers by the layers' names.

    Raises:
        ConfigError: A name is none of a layer.
    """
    nodes: Mapping[str, str] = {one.name: one.node for one in known}
    missing = [name for name in names if name not in nodes]
    if missing:
        raise ConfigError(
            f"the model has no layer {', '.join(missing)}",
            hint=f"its layers are {', '.join(nodes)}" if nodes else "it has no layer with weights",
        )
    return [nodes[name] for name in names]


def _is_narrow(node: Any, weight: Any) -> bool:
    groups = next((one.i for one in node.attribute if one.name == "group"), 1)
    return node.op_type == "Conv" and groups == 1 and weight.dims[1] < _CHANNELS_MIN


def _count(dims: Sequence[int]) -> int:
    product = 1
    for one in dims:
        product *= one
    return product
