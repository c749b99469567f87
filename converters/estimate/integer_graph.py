"""What a float model would be in static int8, without making it.

Decides which tensors become a byte an element (activations and weights), which stay (biases, which become int32, and what
is no float), and how many bytes the scales add. For saying what quantization would bring; the real file is what `convert`
makes. Pure.
"""

from __future__ import annotations

from typing import Final

import msgspec

from edgeml.manifest import RuntimeFamily

from .graph import (
    WEIGHTED,
    Arithmetic,
    ElementType,
    Graph,
    OperatorKind,
    Role,
    Tensor,
    arithmetic,
    weight_bytes,
)

_SCALE_BYTES: Final = {RuntimeFamily.TFLITE: 12, RuntimeFamily.ONNX: 5}
"""A scale and a zero point: float and int64 in a .tflite, float and int8 in ONNX."""
_BY_CHANNEL: Final = frozenset(
    {OperatorKind.CONV, OperatorKind.DEPTHWISE, OperatorKind.TRANSPOSED_CONV, OperatorKind.LINEAR}
)
_TENSOR_BYTES: Final = 64
"""What the quantization of an activation takes of the file: names, vectors, offsets."""


def is_integer(graph: Graph) -> bool:
    """Whether it multiplies, and always in integers."""
    how = {arithmetic(graph, one) for one in graph.operators if one.macs}
    return bool(how) and how <= {Arithmetic.INT8, Arithmetic.INT16}


def can_be_integer(graph: Graph) -> bool:
    """Whether int8 would bring anything: something multiplies by weights, and not in integers. Trees do not."""
    return any(
        one.kind in WEIGHTED and arithmetic(graph, one) not in {Arithmetic.INT8, Arithmetic.INT16}
        for one in graph.operators
        if one.macs
    )


def as_integers(graph: Graph) -> Graph:
    """The graph with a byte for every float, and four for a bias."""
    return msgspec.structs.replace(graph, tensors=tuple(_as_integer(tensor) for tensor in graph.tensors))


def int8_file_bytes(graph: Graph, length_bytes: int) -> int:
    """About how long the file would be in static int8.

    Args:
        graph: of the float file.
        length_bytes: of the float file.
    """
    smaller = as_integers(graph)
    scale = _SCALE_BYTES[graph.family]
    channels = sum(one.channels for one in graph.operators if one.kind in _BY_CHANNEL)
    activations = sum(tensor.role is Role.ACTIVATION for tensor in graph.tensors)
    # Weights and biases have a scale a channel each, activations one.
    return (
        length_bytes
        - weight_bytes(graph)
        + weight_bytes(smaller)
        + 2 * scale * channels
        + _TENSOR_BYTES * activations
    )


def _as_integer(tensor: Tensor) -> Tensor:
    if not tensor.element.is_float:
        return tensor
    if tensor.role is Role.CONSTANT and len(tensor.shape) < 2:
        return msgspec.structs.replace(
            tensor, element=ElementType.INT32, length_bytes=4 * tensor.elements, scales=1
        )
    return msgspec.structs.replace(tensor, element=ElementType.INT8, length_bytes=tensor.elements, scales=1)
