"""A model file as one small graph, the same for ONNX and TFLite: tensors, and operators in the order in which they run.

Decides what is counted and how: a MAC is one product that is added up (convolutions, matrix products, recurrent cells);
pooling, activations and sums count none. A parameter is one element of a constant that an operator computes with; scales,
zero points, shapes and axes are none. Pure; how a file is read is the business of `onnx_graph.py` and `tflite_graph.py`.
What a runtime refuses (custom operators, external data, free shapes) is told in fields, for others to refuse.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from edgeml.manifest import RuntimeFamily

UNKNOWN: Final = -1
"""A dimension that the file leaves free, other than the batch, which is taken as 1."""


class ElementType(enum.Enum):
    """Element types of both families, by their numpy-like names."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8 = "float8"
    INT64 = "int64"
    INT32 = "int32"
    INT16 = "int16"
    INT8 = "int8"
    INT4 = "int4"
    INT2 = "int2"
    UINT64 = "uint64"
    UINT32 = "uint32"
    UINT16 = "uint16"
    UINT8 = "uint8"
    UINT4 = "uint4"
    BOOL = "bool"
    COMPLEX64 = "complex64"
    COMPLEX128 = "complex128"
    OTHER = "other"
    """Text, resources, sequences: nothing with a size."""

    @property
    def bits(self) -> int:
        """Bits of one element; 0 of what has no size."""
        digits = "".join(filter(str.isdigit, self.value))
        return int(digits) if digits else 8 * (self is ElementType.BOOL)

    @property
    def is_float(self) -> bool:
        """Whether it is a real number."""
        return "float" in self.value


class Role(enum.Enum):
    """What a tensor is for."""

    ACTIVATION = "activation"
    CONSTANT = "constant"
    """Its value is in the file."""
    VARIABLE = "variable"
    """State that outlives a request."""


class OperatorKind(enum.Enum):
    """What an operator does, as far as its cost goes."""

    CONV = "convolution"
    DEPTHWISE = "depthwise convolution"
    TRANSPOSED_CONV = "transposed convolution"
    LINEAR = "linear"
    MATMUL = "product of two activations"
    RECURRENT = "recurrent"
    TREE = "trees"
    POOL = "pooling"
    NORMALIZATION = "normalization"
    SOFTMAX = "softmax"
    ACTIVATION = "activation"
    ELEMENTWISE = "elementwise"
    REDUCE = "reduction"
    MOVE = "data movement"
    """Elements are copied and none is computed."""
    VIEW = "view"
    """Only the shape changes."""
    QUANTIZE = "quantization"
    OTHER = "other"


WEIGHTED: Final = frozenset(
    {
        OperatorKind.CONV,
        OperatorKind.DEPTHWISE,
        OperatorKind.TRANSPOSED_CONV,
        OperatorKind.LINEAR,
        OperatorKind.RECURRENT,
    }
)
"""Kinds that multiply an activation by weights."""


class Arithmetic(enum.Enum):
    """In what an operator computes."""

    FLOAT32 = "fp32"
    FLOAT16 = "fp16"
    INT8 = "int8"
    INT16 = "int16"
    """int16 activations and int8 weights."""
    HYBRID = "hybrid"
    """Float activations and integer weights, which the kernel brings together while it runs."""


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tensor. `scales` is how many scales it has: 0 if it is not quantized, 1, or one a channel.

    `scale` and `zero_point` are the first ones: real = (q - zero_point) * scale.
    """

    name: str
    shape: tuple[int, ...]
    element: ElementType
    role: Role
    length_bytes: int
    scales: int = 0
    scale: float = 0.0
    zero_point: int = 0

    @property
    def elements(self) -> int:
        """Number of elements; an unknown dimension counts as 1."""
        return elements(self.shape)

    @property
    def quantized(self) -> bool:
        """Whether integers stand for reals."""
        return self.scales > 0


class Operator(msgspec.Struct, frozen=True, omit_defaults=True):
    """One operator. `inputs`, `outputs` and `weights` are indices of tensors.

    `weights` are the constants that are its parameters; `depth` is how many products are added for one output element;
    `channels` is how many output channels it has, 0 if that means nothing for it.
    """

    name: str
    native: str
    kind: OperatorKind
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    weights: tuple[int, ...] = ()
    parameters: int = 0
    macs: int = 0
    depth: int = 0
    channels: int = 0


class Graph(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model file. A sample is one: a free batch is taken as 1.

    `custom` names operators that are of neither family's own set, `external` files that hold weights, `dynamic` tensors of
    which more than the batch is free (or that nothing could be said of), `nested` operators that run another graph, which
    is not counted. `form` is the ONNX opset, or the version of the TFLite schema.
    """

    family: RuntimeFamily
    tensors: tuple[Tensor, ...]
    operators: tuple[Operator, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    form: int
    custom: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    dynamic: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()


class Layer(msgspec.Struct, frozen=True):
    """A row of the table of a model: an operator with what it reads and writes, in bytes."""

    name: str
    native: str
    kind: OperatorKind
    arithmetic: Arithmetic
    macs: int
    parameters: int
    channels: int
    weight_bytes: int
    activation_bytes: int


def elements(shape: Sequence[int]) -> int:
    """Number of elements of a shape; an unknown dimension counts as 1.

    >>> elements((1, UNKNOWN, 3)), elements(())
    (3, 1)
    """
    return math.prod(1 if size == UNKNOWN else size for size in shape)


def length_bytes(shape: Sequence[int], element: ElementType) -> int:
    """Bytes of a dense tensor; elements of less than a byte are packed.

    >>> length_bytes((3, 3), ElementType.INT4)
    5
    """
    return -(-elements(shape) * element.bits // 8)


def macs(graph: Graph) -> int:
    """Products that are added up for one sample."""
    return sum(operator.macs for operator in graph.operators)


def parameters(graph: Graph) -> int:
    """Parameters of the model; a constant that several operators share counts once."""
    own = sum(operator.parameters for operator in graph.operators)
    return own - sum(graph.tensors[index].elements for index in _shared(graph))


def weight_bytes(graph: Graph) -> int:
    """Bytes of all constants in the file, scales and shapes included."""
    return sum(tensor.length_bytes for tensor in graph.tensors if tensor.role is Role.CONSTANT)


def layers(graph: Graph) -> tuple[Layer, ...]:
    """The table of a model, a row an operator, in the order in which they run."""
    return tuple(_layer(graph, operator) for operator in graph.operators)


def arithmetic(graph: Graph, operator: Operator) -> Arithmetic:
    """In what an operator computes: told by its activations, and by its weights if those are floats."""
    read = [graph.tensors[index] for index in operator.inputs]
    active = [one for one in read if one.role is not Role.CONSTANT] or read
    data = active[0] if active else None
    if data is None or data.element.is_float or data.element is ElementType.OTHER:
        weights = [graph.tensors[index] for index in operator.weights if index in operator.inputs]
        if operator.kind in WEIGHTED and any(not one.element.is_float for one in weights):
            return Arithmetic.HYBRID
        return (
            Arithmetic.FLOAT16
            if data is not None and data.element is ElementType.FLOAT16
            else Arithmetic.FLOAT32
        )
    return Arithmetic.INT16 if data.element in {ElementType.INT16, ElementType.UINT16} else Arithmetic.INT8


def producers(graph: Graph) -> dict[int, int]:
    """Which operator writes a tensor: index of the tensor to index of the operator."""
    return {tensor: place for place, operator in enumerate(graph.operators) for tensor in operator.outputs}


def _shared(graph: Graph) -> list[int]:
    seen: set[int] = set()
    again = []
    for operator in graph.operators:
        for index in operator.weights:
            if index in seen:
                again.append(index)
            seen.add(index)
    return again


def _layer(graph: Graph, operator: Operator) -> Layer:
    constants = {index for index in operator.inputs if graph.tensors[index].role is Role.CONSTANT}
    moved = (set(operator.inputs) | set(operator.outputs)) - constants
    return Layer(
        operator.name, operator.native, operator.kind, arithmetic(graph, operator), operator.macs, operator.parameters,
        operator.channels, sum(graph.tensors[index].length_bytes for index in constants),
        sum(graph.tensors[index].length_bytes for index in moved),
    )  # fmt: skip
