"""Reads an ONNX file into a graph.

Decides how shapes are found (onnx infers them; operators of onnxruntime's own set stand in as the standard ones that they
mean), what a batch of one makes of free dimensions, and that quantized operators that are written as float ones between
DequantizeLinear and QuantizeLinear count as the integer operators that the runtime makes of them. Weights in other files
are never opened. What each operator costs is in `onnx_work.py`.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily

from ..quiet import first_line, quiet
from .graph import (
    UNKNOWN,
    WEIGHTED,
    ElementType,
    Graph,
    Operator,
    OperatorKind,
    Role,
    Tensor,
    elements,
    length_bytes,
)
from .onnx_work import FUSED_WITH_SCALES, KINDS, Node, parameters_of, work_of

TENSORS_MAX: Final = 1 << 18
OPERATORS_MAX: Final = 1 << 17
RANK_MAX: Final = 32
ELEMENTS_MAX: Final = 1 << 40
MODEL_BYTES_MAX: Final = 1 << 31
STANDARD: Final = ("", "ai.onnx")
KNOWN_DOMAINS: Final = frozenset({*STANDARD, "ai.onnx.ml", "com.microsoft"})
"""Domains whose operators every build of onnxruntime has."""
DEQUANTIZE: Final = "DequantizeLinear"
QUANTIZE: Final = "QuantizeLinear"
_CLIPS: Final = frozenset({"Relu", "Clip"})
"""What rounding to the range of an integer does as well."""
_SHADOW: Final[Mapping[str, tuple[str, tuple[int, ...]]]] = {
    "QLinearAdd": ("Add", (0, 3)), "QLinearMul": ("Mul", (0, 3)), "QGemm": ("Gemm", (0, 3, 6)),
    "QLinearSigmoid": ("Sigmoid", (0,)), "QLinearLeakyRelu": ("LeakyRelu", (0,)), "QLinearSoftmax": ("Softmax", (0,)),
    "QLinearAveragePool": ("AveragePool", (0,)), "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearReduceMean": ("ReduceMean", (0,)), "FusedConv": ("Conv", (0, 1, 2)), "FusedMatMul": ("MatMul", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1, 2)), "Gelu": ("Relu", (0,)), "QuickGelu": ("Relu", (0,)), "BiasGelu": ("Add", (0, 1)),
    "QuantizeLinear": ("QuantizeLinear", (0, 1, 2)), "DequantizeLinear": ("DequantizeLinear", (0, 1, 2)),
}  # fmt: skip
"""onnxruntime's operators: the standard one whose result has the same shape, and which inputs it would take."""


def read_onnx(model: bytes) -> Graph:
    """Read an ONNX file.

    Args:
        model: the file's bytes.

    Raises:
        BackendError: It is no ONNX file, or is damaged, or is beyond a limit.
    """
    import onnx

    if not model or len(model) > MODEL_BYTES_MAX:
        raise BackendError("this is no ONNX file in one piece of 2 GiB", hint="export the model again")
    with quiet():
        try:
            proto = onnx.load_from_string(model)
        except Exception as error:  # protobuf raises errors of its own
            raise BackendError(
                f"this is no ONNX file: {first_line(error)}", hint="export the model again"
            ) from error
        _check(proto)
        try:
            _sort(proto.graph)
            return _folded(_read(proto, _types(proto)))
        except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
            raise BackendError(
                f"the ONNX file does not hold together: {first_line(error)}", hint="export the model again"
            ) from error


def _check(proto: Any) -> None:
    graph = proto.graph
    if len(graph.node) > OPERATORS_MAX or len(graph.initializer) > TENSORS_MAX or not graph.output:
        raise BackendError(
            f"the ONNX file has {len(graph.node)} operators, {len(graph.initializer)} constants and {len(graph.output)} outputs",
            hint="export the model again",
        )


def _sort(graph: Any) -> None:
    """Bring the operators into an order in which they can run; converters leave some at the end, as runtimes sort them anyway."""
    writer = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    after = [{writer[name] for name in _reads(node) if name in writer} for node in graph.node]
    readers: dict[int, list[int]] = {}
    for place, before in enumerate(after):
        for one in before:
            readers.setdefault(one, []).append(place)
    waiting = [len(before) for before in after]
    ready = [place for place, count in enumerate(waiting) if not count]
    order = []
    while ready:
        place = heapq.heappop(ready)  # the earliest in the file that can run
        order.append(place)
        for reader in readers.get(place, ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) != len(graph.node):
        raise ValueError("operators wait for one another in a circle")
    nodes = [graph.node[place] for place in order]
    if order != sorted(order):
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def _reads(node: Any) -> Iterator[str]:
    """Names that an operator reads, those of the graphs within it included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _reads(inner)


def _types(proto: Any) -> dict[str, Any]:
    """Infer every value's type: name to TypeProto of a tensor. What cannot be inferred is not in it."""
    import onnx
    from onnx.shape_inference import InferenceError, infer_shapes

    shadow = onnx.ModelProto()
    shadow.CopyFrom(proto)
    constants = {tensor.name for tensor in shadow.graph.initializer}
    for value in shadow.graph.input:
        dimensions = value.type.tensor_type.shape.dim
        if value.name not in constants and dimensions and not dimensions[0].HasField("dim_value"):
            dimensions[0].dim_value = 1
    del shadow.graph.value_info[:]  # they may speak of another batch, or lie
    claimed = {value.name: value.type.tensor_type for value in proto.graph.output}
    for value in shadow.graph.output:
        value.ClearField("type")  # so may these; and a stand-in's type of element may be another
    for node in shadow.graph.node:
        _stand_in(node)
    try:
        inferred = infer_shapes(shadow, data_prop=True)
    except (InferenceError, RuntimeError, ValueError) as error:
        raise BackendError(
            f"onnx cannot infer the shapes: {first_line(error)}", hint="check the model with onnx.checker"
        ) from error
    found = inferred.graph
    types = {
        value.name: value.type.tensor_type
        for values in (found.output, found.input, found.value_info)
        for value in values
    }
    for name, said in claimed.items():
        if types[name].HasField("shape"):
            types[name].elem_type = said.elem_type
        else:
            types[name] = said
    return types


def _stand_in(node: Any) -> None:
    meant = _SHADOW.get(node.op_type) if node.domain == "com.microsoft" else None
    if meant is None:
        return
    node.op_type, kept = meant
    node.domain = ""
    given = list(node.input)
    del node.input[:]
    node.input.extend(given[place] for place in kept if place < len(given))
    allowed = _ATTRIBUTES.get(node.op_type)
    for attribute in [one for one in node.attribute if allowed is not None and one.name not in allowed]:
        node.attribute.remove(attribute)


_ATTRIBUTES: Final = {
    "Gemm": {"transA", "transB", "alpha", "beta"},
    "Conv": {"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"},
    "Relu": set[str](),
    "MatMul": set[str](),
    "GlobalAveragePool": set[str](),
    "QuantizeLinear": {"axis"},
    "DequantizeLinear": {"axis"},
}


class _Tensors:
    """Tensors by name, numbered as they are first met."""

    def __init__(self, proto: Any, types: Mapping[str, Any]) -> None:
        self.external: set[str] = set()
        self.dynamic: list[str] = []
        self.all: list[Tensor] = []
        self._types = types
        self._numbers: dict[str, int] = {}
        for tensor in proto.graph.initializer:
            self.add_constant(tensor.name, tensor)
        for sparse in proto.graph.sparse_initializer:
            self.add_constant(sparse.values.name, sparse.values)

    def number(self, name: str) -> int:
        """Index of a tensor, which is made if it is new."""
        if name not in self._numbers:
            self._add(name, self._activation(name))
        return self._numbers[name]

    def add_constant(self, name: str, tensor: Any) -> None:
        """Add a constant of the file."""
        shape = tuple(int(size) for size in tensor.dims)
        if tensor.data_location == tensor.EXTERNAL:
            self.external.add(next((one.value for one in tensor.external_data if one.key == "location"), ""))
        self._add(name, self._checked(name, shape, _element(tensor.data_type), Role.CONSTANT))

    def _activation(self, name: str) -> Tensor:
        kind = self._types.get(name)
        if kind is None or not kind.HasField("shape"):
            self.dynamic.append(name)
            return Tensor(name, (), _element(0 if kind is None else kind.elem_type), Role.ACTIVATION, 0)
        shape = tuple(int(one.dim_value) if one.HasField("dim_value") else UNKNOWN for one in kind.shape.dim)
        if UNKNOWN in shape:
            self.dynamic.append(name)
        return self._checked(name, shape, _element(kind.elem_type), Role.ACTIVATION)

    def _checked(self, name: str, shape: tuple[int, ...], element: ElementType, role: Role) -> Tensor:
        if len(shape) > RANK_MAX or any(size < UNKNOWN for size in shape) or elements(shape) > ELEMENTS_MAX:
            raise ValueError(f"tensor {name!r} has the shape {list(shape)[:RANK_MAX]}")
        return Tensor(name, shape, element, role, length_bytes(shape, element))

    def _add(self, name: str, tensor: Tensor) -> None:
        if len(self.all) >= TENSORS_MAX:
            raise ValueError(f"more than {TENSORS_MAX} tensors")
        self._numbers[name] = len(self.all)
        self.all.append(tensor)


def _read(proto: Any, types: Mapping[str, Any]) -> Graph:
    tensors = _Tensors(proto, types)
    given = {tensor.name for tensor in proto.graph.initializer}
    custom: set[str] = set()
    nested: set[str] = set()
    inputs = tuple(tensors.number(value.name) for value in proto.graph.input if value.name not in given)
    operators = []
    for node in proto.graph.node:
        if (
            node.op_type == "Constant"
            and node.domain in STANDARD
            and len(node.attribute) == 1
            and node.attribute[0].HasField("t")
        ):
            tensors.add_constant(node.output[0], node.attribute[0].t)
            continue
        operators.append(_operator(node, tensors))
        if node.domain not in KNOWN_DOMAINS:
            custom.add(f"{node.domain}.{node.op_type}")
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            nested.add(node.op_type)
    outputs = tuple(tensors.number(value.name) for value in proto.graph.output)
    form = next((int(entry.version) for entry in proto.opset_import if entry.domain in STANDARD), 0)
    return Graph(
        RuntimeFamily.ONNX, tuple(tensors.all), tuple(operators), inputs, outputs, form, custom=tuple(sorted(custom)),
        external=tuple(sorted(tensors.external)), dynamic=tuple(tensors.dynamic), nested=tuple(sorted(nested)),
    )  # fmt: skip


def _operator(node: Any, tensors: _Tensors) -> Operator:
    inputs = [
        tensors.number(name) if name else UNKNOWN for name in node.input
    ]  # an empty name is an operand left out
    outputs = tuple(tensors.number(name) for name in node.output if name)
    kind = KINDS.get(node.op_type, OperatorKind.OTHER) if node.domain in KNOWN_DOMAINS else OperatorKind.OTHER
    return _costed(
        Operator(
            node.name or (node.output[0] if node.output else node.op_type), node.op_type, kind, (), outputs
        ),
        Node(node.op_type, kind, tuple(inputs), outputs, {one.name: one for one in node.attribute}),
        tensors.all,
    )


def _costed(bare: Operator, node: Node, tensors: list[Tensor]) -> Operator:
    weights, extra = parameters_of(node, tensors)
    total, depth, channels = work_of(node, tensors)
    kind = (
        OperatorKind.DEPTHWISE if node.kind is OperatorKind.CONV and node.is_depthwise(tensors) else node.kind
    )
    return msgspec.structs.replace(
        bare, kind=kind, inputs=tuple(index for index in node.inputs if index != UNKNOWN), weights=weights,
        parameters=extra + sum(tensors[index].elements for index in weights), macs=total, depth=depth, channels=channels,
    )  # fmt: skip


def _folded(graph: Graph) -> Graph:
    """Take DequantizeLinear and QuantizeLinear out where the runtime fuses them with what stands between them."""
    origins = {
        one.outputs[0]: one.inputs[0]
        for one in graph.operators
        if one.native == DEQUANTIZE and one.outputs and one.inputs
    }
    rounded = _rounded(graph)
    fused = [_settled(_fused(one, origins, rounded, graph.tensors)) for one in graph.operators]
    made: set[int] = set()
    kept = []
    for one in fused:
        if (
            one.outputs and one.outputs[0] in made
        ):  # what rounds, or clips before that, after an operator that now does it
            continue
        kept.append(one)
        made.update(one.outputs)
    wanted = {index for one in kept for index in one.inputs} | set(graph.outputs)
    kept = [one for one in kept if one.native != DEQUANTIZE or set(one.outputs) & wanted]
    return msgspec.structs.replace(graph, operators=tuple(kept))


def _rounded(graph: Graph) -> dict[int, int]:
    """Which integers an operator may write instead of its floats: what QuantizeLinear makes of them, and nobody else reads."""
    readers = Counter(index for operator in graph.operators for index in operator.inputs)
    readers.update(graph.outputs)
    found: dict[int, int] = {}
    for one in reversed(graph.operators):
        if not one.inputs or not one.outputs or readers[one.inputs[0]] != 1:
            continue
        if one.native == QUANTIZE:
            found[one.inputs[0]] = one.outputs[0]
        elif one.native in _CLIPS and one.outputs[0] in found:
            found[one.inputs[0]] = found[one.outputs[0]]
    return found


def _fused(
    operator: Operator, origins: Mapping[int, int], rounded: Mapping[int, int], tensors: tuple[Tensor, ...]
) -> Operator:
    """Let an operator read and write the integers themselves, if all its activations are dequantized ones."""
    if operator.kind not in FUSED_WITH_SCALES:
        return operator
    meant = tuple(origins.get(index, index) for index in operator.inputs)
    own = tuple(index for index in meant if tensors[index].role is Role.CONSTANT)
    if own and not operator.weights and operator.kind in WEIGHTED:
        # The weights are dequantized ones: they are the operator's parameters all the same.
        operator = msgspec.structs.replace(
            operator, weights=own, parameters=sum(tensors[index].elements for index in own)
        )
    active = [
        index
        for index, source in zip(operator.inputs, meant, strict=True)
        if tensors[source].role is not Role.CONSTANT
    ]
    if (
        not active
        or not all(index in origins for index in active)
        or not all(index in rounded for index in operator.outputs)
    ):
        return operator
    return msgspec.structs.replace(
        operator, inputs=meant, outputs=tuple(rounded[index] for index in operator.outputs)
    )


def _settled(operator: Operator) -> Operator:
    """A product without weights is one of two activations."""
    if operator.kind is OperatorKind.LINEAR and not operator.parameters:
        return msgspec.structs.replace(operator, kind=OperatorKind.MATMUL)
    return operator


def _element(number: int) -> ElementType:
    return _ELEMENTS.get(number, ElementType.OTHER)


_ELEMENTS: Final = {
    1: ElementType.FLOAT32, 2: ElementType.UINT8, 3: ElementType.INT8, 4: ElementType.UINT16, 5: ElementType.INT16,
    6: ElementType.INT32, 7: ElementType.INT64, 9: ElementType.BOOL, 10: ElementType.FLOAT16, 11: ElementType.FLOAT64,
    12: ElementType.UINT32, 13: ElementType.UINT64, 14: ElementType.COMPLEX64, 15: ElementType.COMPLEX128,
    16: ElementType.BFLOAT16, 17: ElementType.FLOAT8, 18: ElementType.FLOAT8, 19: ElementType.FLOAT8, 20: ElementType.FLOAT8,
    21: ElementType.UINT4, 22: ElementType.INT4, 25: ElementType.INT2,
}  # fmt: skip
"""TensorProto.DataType by its numbers, which the format fixes."""
