"""What an ONNX operator costs: its kind, which of its constants are parameters, and how many MACs it takes.

Decides the table of operators, of the standard set, of ai.onnx.ml and of onnxruntime's own. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from .graph import UNKNOWN, OperatorKind, Role, Tensor


@dataclass(frozen=True, slots=True)
class Node:
    """An operator of an ONNX file. `inputs` holds UNKNOWN where an operand is left out."""

    native: str
    kind: OperatorKind
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    attributes: Mapping[str, Any]

    def operand(self, place: int) -> int:
        """Index of the tensor of an operand; UNKNOWN if it is left out."""
        return self.inputs[place] if place < len(self.inputs) else UNKNOWN

    def integer(self, name: str, default: int) -> int:
        """An attribute that is one integer."""
        return int(self.attributes[name].i) if name in self.attributes else default

    def floats(self, name: str) -> int:
        """How many numbers an attribute has."""
        return len(self.attributes[name].floats) if name in self.attributes else 0

    def is_depthwise(self, tensors: Sequence[Tensor]) -> bool:
        """Whether each input channel is convolved alone."""
        group = self.integer("group", 1)
        data = self.operand(0)
        return (
            group > 1 and data != UNKNOWN and len(tensors[data].shape) > 1 and tensors[data].shape[1] == group
        )


Work = tuple[int, int, int]
"""MACs, depth and channels."""
NOTHING: Final = (0, 0, 0)


def parameters_of(node: Node, tensors: Sequence[Tensor]) -> tuple[tuple[int, ...], int]:
    """Which constants are an operator's parameters, and how many it holds in attributes beside them."""
    extra = sum(node.floats(name) for name in _ATTRIBUTES_WITH_PARAMETERS)
    places = _DATA.get(node.native)
    if places is None:
        places = tuple(range(len(node.inputs))) if node.kind in _WITH_PARAMETERS else ()
    found = (node.operand(place) for place in places)
    return tuple(index for index in found if index != UNKNOWN and tensors[index].role is Role.CONSTANT), extra


def work_of(node: Node, tensors: Sequence[Tensor]) -> Work:
    """MACs, depth and channels of an operator; zeros where nothing is multiplied and added, or shapes are unknown."""
    rule = _WORK.get(node.native)
    if rule is None or not node.outputs:
        return NOTHING
    return rule(node, tensors)


def _shape(node: Node, place: int, tensors: Sequence[Tensor]) -> tuple[int, ...]:
    index = node.operand(place)
    return () if index == UNKNOWN else tensors[index].shape


def _out(node: Node, tensors: Sequence[Tensor]) -> Tensor:
    return tensors[node.outputs[0]]


def _convolution(node: Node, tensors: Sequence[Tensor]) -> Work:
    index = node.operand(_WEIGHTS_AT.get(node.native, 1))
    if index == UNKNOWN or not tensors[index].shape:
        return NOTHING
    channels = max(tensors[index].shape[0], 1)
    depth = tensors[index].elements // channels
    return _out(node, tensors).elements * depth, depth, channels


def _transposed(node: Node, tensors: Sequence[Tensor]) -> Work:
    weights, data = node.operand(1), node.operand(0)
    shape = _shape(node, 1, tensors)
    if UNKNOWN in {weights, data} or len(shape) < 2:
        return NOTHING
    total = tensors[data].elements * (tensors[weights].elements // max(shape[0], 1))
    return total, -(-total // max(_out(node, tensors).elements, 1)), shape[1] * node.integer("group", 1)


def _gemm(node: Node, tensors: Sequence[Tensor]) -> Work:
    shape = _shape(node, 0, tensors)
    if len(shape) != 2:
        return NOTHING
    depth = max(shape[0 if node.integer("transA", 0) else 1], 0)
    return _columns(_out(node, tensors), depth)


def _matmul(node: Node, tensors: Sequence[Tensor]) -> Work:
    shape = _shape(node, 0, tensors)
    return _columns(_out(node, tensors), max(shape[-1], 0)) if shape else NOTHING


def _columns(out: Tensor, depth: int) -> Work:
    return out.elements * depth, depth, max(out.shape[-1], 0) if out.shape else 0


def _packed(node: Node, tensors: Sequence[Tensor]) -> Work:
    depth, channels = node.integer("K", 0), node.integer("N", 0)
    return _out(node, tensors).elements * depth, depth, channels


def _recurrent(node: Node, tensors: Sequence[Tensor]) -> Work:
    data, first, second = (_shape(node, place, tensors) for place in (0, 1, 2))
    if len(data) != 3 or len(first) != 3 or len(second) != 3:
        return NOTHING
    steps = max(data[0], 1) * max(data[1], 1)
    each = sum(tensors[node.operand(place)].elements for place in (1, 2))
    return steps * each, first[2] + second[2], node.integer("hidden_size", second[2])


def _coefficients(node: Node, _tensors: Sequence[Tensor]) -> Work:
    total = node.floats("coefficients") + node.floats("support_vectors")
    return total, 0, 0


_WORK: Final[Mapping[str, Callable[[Node, Sequence[Tensor]], Work]]] = {
    "Conv": _convolution, "FusedConv": _convolution, "QLinearConv": _convolution, "ConvInteger": _convolution,
    "ConvTranspose": _transposed, "Gemm": _gemm, "FusedGemm": _gemm, "QGemm": _gemm, "MatMul": _matmul,
    "FusedMatMul": _matmul, "MatMulInteger": _matmul, "QLinearMatMul": _matmul, "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul, "MatMulNBits": _packed, "LSTM": _recurrent, "GRU": _recurrent, "RNN": _recurrent,
    "LinearClassifier": _coefficients, "LinearRegressor": _coefficients, "SVMClassifier": _coefficients,
    "SVMRegressor": _coefficients,
}  # fmt: skip
_WEIGHTS_AT: Final = {"QLinearConv": 3}
_DATA: Final[Mapping[str, tuple[int, ...]]] = {
    "Conv": (1, 2), "FusedConv": (1, 2), "QLinearConv": (3, 8), "ConvInteger": (1,), "ConvTranspose": (1, 2),
    "QGemm": (0, 3, 6), "QLinearMatMul": (0, 3), "MatMulInteger": (0, 1), "MatMulIntegerToFloat": (0, 1, 6),
    "DynamicQuantizeMatMul": (1, 4), "MatMulNBits": (1,), "QLinearAdd": (0, 3), "QLinearMul": (0, 3),
    "LSTM": (1, 2, 3, 7), "GRU": (1, 2, 3), "RNN": (1, 2, 3), "Gather": (0,), "Clip": (), "Pow": (),
    "Relu": (), "LeakyRelu": (), "QLinearSigmoid": (), "QLinearLeakyRelu": (),
}  # fmt: skip
"""Which operands are data; of all others of a kind that has parameters, every one is."""
_ATTRIBUTES_WITH_PARAMETERS: Final = (
    "coefficients", "intercepts", "support_vectors", "rho", "nodes_values", "class_weights", "target_weights", "leaf_weights",
)  # fmt: skip
_WITH_PARAMETERS: Final = frozenset(
    {
        OperatorKind.CONV, OperatorKind.TRANSPOSED_CONV, OperatorKind.LINEAR, OperatorKind.MATMUL, OperatorKind.RECURRENT,
        OperatorKind.ELEMENTWISE, OperatorKind.ACTIVATION, OperatorKind.NORMALIZATION,
    }
)  # fmt: skip
FUSED_WITH_SCALES: Final = frozenset(OperatorKind) - {
    OperatorKind.QUANTIZE,
    OperatorKind.OTHER,
    OperatorKind.TREE,
}
"""Kinds that a runtime computes in integers where they stand between DequantizeLinear and QuantizeLinear."""
_NAMES: Final[Mapping[OperatorKind, str]] = {
    OperatorKind.CONV: "Conv FusedConv QLinearConv ConvInteger",
    OperatorKind.TRANSPOSED_CONV: "ConvTranspose",
    OperatorKind.LINEAR: (
        "Gemm FusedGemm QGemm MatMul FusedMatMul MatMulInteger QLinearMatMul MatMulIntegerToFloat DynamicQuantizeMatMul MatMulNBits "
        "LinearClassifier LinearRegressor SVMClassifier SVMRegressor"
    ),
    OperatorKind.RECURRENT: "LSTM GRU RNN",
    OperatorKind.TREE: "TreeEnsembleClassifier TreeEnsembleRegressor TreeEnsemble",
    OperatorKind.POOL: (
        "AveragePool MaxPool LpPool GlobalAveragePool GlobalMaxPool QLinearAveragePool QLinearGlobalAveragePool"
    ),
    OperatorKind.NORMALIZATION: (
        "BatchNormalization InstanceNormalization LayerNormalization GroupNormalization LRN LpNormalization Normalizer Scaler "
        "SkipLayerNormalization SimplifiedLayerNormalization"
    ),
    OperatorKind.SOFTMAX: "Softmax LogSoftmax QLinearSoftmax",
    OperatorKind.ACTIVATION: (
        "Relu LeakyRelu PRelu Sigmoid Tanh Clip Elu Selu HardSigmoid HardSwish Gelu QuickGelu BiasGelu Softplus Softsign Mish "
        "ThresholdedRelu QLinearSigmoid QLinearLeakyRelu"
    ),
    OperatorKind.ELEMENTWISE: (
        "Add Sub Mul Div Pow Max Min Sum Mean Abs Neg Exp Log Sqrt Reciprocal Floor Ceil Round Sign Erf Sin Cos Equal Greater "
        "GreaterOrEqual Less LessOrEqual And Or Not Xor Where CumSum Mod QLinearAdd QLinearMul"
    ),
    OperatorKind.REDUCE: (
        "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare ReduceLogSumExp ArgMax ArgMin TopK "
        "QLinearReduceMean"
    ),
    OperatorKind.MOVE: (
        "Concat Pad Transpose Slice Split Gather GatherND GatherElements Tile Resize Upsample DepthToSpace SpaceToDepth Expand "
        "ScatterND ScatterElements QLinearConcat ArrayFeatureExtractor FeatureVectorizer ConstantOfShape OneHot"
    ),
    OperatorKind.VIEW: "Reshape Flatten Squeeze Unsqueeze Identity Dropout Shape ZipMap",
    OperatorKind.QUANTIZE: "QuantizeLinear DequantizeLinear DynamicQuantizeLinear Cast",
}
KINDS: Final[Mapping[str, OperatorKind]] = {
    name: kind for kind, names in _NAMES.items() for name in names.split()
}
"""Kind of each operator whose kind is known."""
