"""The constants of an ONNX graph as its operators read them, named by these readers: `Conv 3.weight`.

Decides what stands for a weight where tensors' names say nothing, as in the files that `edgeml convert` writes: their
names are of one letter, and a letter means another tensor in another variant. Narrow storage is undone: what only turns
constants into others (a Cast, a Mul by a scale, two weights to a byte) is computed here, by numpy, and by nothing else.
Files are hostile: what would grow beyond the file is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from .scaling import Weight, reals_of, scalings

Array = npt.NDArray[Any]

GROWTH_MAX: Final = 64
"""Elements that all results may have together, for each byte of the file. Two weights to a byte take 26 on their way."""
_SAYS_MIN: Final = 4
"""Characters of a name that says something."""
_KINDS: Final = {
    "FusedConv": "Conv", "NhwcFusedConv": "Conv", "QLinearConv": "Conv", "ConvInteger": "Conv", "Gemm": "Linear",
    "FusedGemm": "Linear", "QGemm": "Linear", "MatMul": "Linear", "QLinearMatMul": "Linear", "MatMulInteger": "Linear",
}  # fmt: skip
"""What counts as one kind: a layer is quantized, or fused, to another operator."""
_ROLES: Final[Mapping[str, Mapping[int, str]]] = {
    "Conv": {1: "weight", 2: "bias"}, "FusedConv": {1: "weight", 2: "bias"}, "NhwcFusedConv": {1: "weight", 2: "bias"},
    "QLinearConv": {3: "weight", 8: "bias"}, "ConvInteger": {1: "integers"}, "ConvTranspose": {1: "weight", 2: "bias"},
    "Gemm": {1: "weight", 2: "bias"}, "FusedGemm": {1: "weight", 2: "bias"}, "QGemm": {3: "weight", 6: "bias"},
    "MatMul": {0: "weight", 1: "weight"}, "QLinearMatMul": {0: "integers", 3: "weight"},
    "MatMulInteger": {0: "integers", 1: "integers"},
}  # fmt: skip
"""What an input is to its operator. Integers are such as have their scales in another operator, which are not turned back."""
_PARAMETERS: Final[Mapping[str, frozenset[int]]] = {
    "QLinearConv": frozenset({1, 2, 4, 5, 6, 7}), "QLinearMatMul": frozenset({1, 2, 4, 5, 6, 7}),
    "QGemm": frozenset({1, 2, 4, 5, 7, 8}), "ConvInteger": frozenset({2, 3}), "MatMulInteger": frozenset({2, 3}),
    "QuantizeLinear": frozenset({1, 2}), "DequantizeLinear": frozenset({1, 2}),
}  # fmt: skip
"""Inputs that are scales and zero points, which belong to what they scale."""


class Growth:
    """Counts elements before they are made."""

    def __init__(self, elements_max: int) -> None:
        self._left = elements_max

    def add(self, elements: int) -> None:
        """Count these.

        Raises:
            ValueError: There would be more than may be.
        """
        self._left -= elements
        if self._left < 0:
            raise ValueError("its constants grow beyond what the file can mean")


def says_nothing(graph: Any) -> bool:
    """Whether no operator has a name, and no constant one of more than a few letters."""
    return not any(node.name for node in graph.node) and all(
        len(one.name) < _SAYS_MIN for one in graph.initializer
    )


def read_constants(graph: Any, file_bytes: int) -> Iterator[Weight]:
    """Follow the constants to the operators that read them, in the order of the graph.

    Integers are turned back into what they stand for; a matrix has its outputs first, whichever way it is stored. What is
    no number is left out.

    Raises:
        ValueError: The results of operators on constants would be larger than any file of this size needs.
        TypeError, IndexError, KeyError: The graph is damaged.
    """
    from onnx import numpy_helper

    growth = Growth(GROWTH_MAX * file_bytes)
    known = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    stored = {name: array.dtype.name for name, array in known.items()}
    counts: Counter[str] = Counter()
    for node in graph.node:
        inputs = [known.get(name) for name in node.input]
        attributes = {one.name: one for one in node.attribute}
        if node.op_type == "Constant" and "value" in attributes:
            known[node.output[0]] = numpy_helper.to_array(attributes["value"].t)
            stored[node.output[0]] = known[node.output[0]].dtype.name
            continue
        reals = {}
        for name, how in scalings(node):
            if name in known and set(how.scales) <= set(known):
                growth.add(known[name].size)
                reals[name] = reals_of(known[name], how, known)
        if node.op_type == "DequantizeLinear" and reals:
            known[node.output[0]], stored[node.output[0]] = reals[node.input[0]], stored[node.input[0]]
            continue
        compute = _COMPUTED.get(node.op_type)
        if compute is not None and inputs and all(one is not None for one in inputs):
            given = [one for one in inputs if one is not None]
            if node.op_type in _SPREAD:
                growth.add(math.prod(np.broadcast_shapes(*(one.shape for one in given))))
            growth.add(sum(one.size for one in given))
            largest = max(range(len(given)), key=lambda at: given[at].size)
            for name, array in zip(node.output, compute(given, attributes), strict=True):
                known[name], stored[name] = array, stored[node.input[largest]]
            continue
        hidden = _PARAMETERS.get(node.op_type, frozenset())
        read = [at for at, one in enumerate(inputs) if one is not None and at not in hidden]
        if not read:
            continue
        kind = _KINDS.get(node.op_type, node.op_type.removeprefix("QLinear"))
        counts[kind] += 1
        for at in read:
            name = node.input[at]
            role = _role(node, at)
            values = reals.get(name, known[name])
            growth.add(values.size)
            if (kind, role) == ("Linear", "weight") and not (
                "transB" in attributes and attributes["transB"].i
            ):
                values = np.swapaxes(values, -1, -2) if values.ndim > 1 else values
            if values.dtype.kind in "fiub":
                yield Weight(f"{kind} {counts[kind]}.{role}", stored[name], values.astype(np.float64))


def _role(node: Any, at: int) -> str:
    """What an operator calls its input."""
    import onnx

    role = _ROLES.get(node.op_type, {}).get(at)
    if role is not None:
        return role
    try:
        declared = onnx.defs.get_schema(node.op_type, domain=node.domain).inputs
    except onnx.defs.SchemaError:
        return f"input {at}"
    return str(declared[min(at, len(declared) - 1)].name) if declared else f"input {at}"


_Attributes = Mapping[str, Any]
_Compute = Callable[[Sequence[Array], _Attributes], Sequence[Array]]


def _cast(given: Sequence[Array], attributes: _Attributes) -> Sequence[Array]:
    import onnx

    return [given[0].astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"].i))]


def _split(given: Sequence[Array], attributes: _Attributes) -> Sequence[Array]:
    axis = attributes["axis"].i if "axis" in attributes else 0
    sizes = given[1].astype(np.int64)
    if sizes.min(initial=0) < 0 or sizes.sum() != given[0].shape[axis]:
        raise ValueError("the parts of a Split are not the whole")
    return np.split(given[0], np.cumsum(sizes)[:-1], axis=axis)


def _shift(given: Sequence[Array], attributes: _Attributes) -> Sequence[Array]:
    shift = np.right_shift if attributes["direction"].s == b"RIGHT" else np.left_shift
    return [shift(given[0], given[1])]


def _slice(given: Sequence[Array], _: _Attributes) -> Sequence[Array]:
    if len(given) != 3 or given[1].size != 1 or given[2].size != 1:
        raise ValueError("a Slice of constants along several axes")
    return [given[0][int(given[1].item()) : int(given[2].item())]]


_COMPUTED: Final[Mapping[str, _Compute]] = {
    "Cast": _cast,
    "Split": _split,
    "BitShift": _shift,
    "Slice": _slice,
    "BitwiseAnd": lambda given, _: [np.bitwise_and(given[0], given[1])],
    "Mul": lambda given, _: [given[0] * given[1]],
    "Sub": lambda given, _: [given[0] - given[1]],
    "Concat": lambda given, attributes: [np.concatenate(given, axis=attributes["axis"].i)],
    "Reshape": lambda given, _: [given[0].reshape(given[1].astype(np.int64).tolist())],
}
"""How narrow storage is undone (`steps/onnx_narrow.py`, `steps/onnx_compact.py`)."""
_SPREAD: Final = frozenset({"BitShift", "BitwiseAnd", "Mul", "Sub"})
"""Whose results may be larger than all of what they are given."""
