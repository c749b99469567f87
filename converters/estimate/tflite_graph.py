"""Reads a .tflite file into a graph.

Decides what is believed of a file that anybody may have written: everything is read in Python with limits, and whatever
does not hold together is a BackendError. Nothing is run. The schema is the one that ai-edge-litert generated; a file of
which the runtime says more (delegates, signatures) is read all the same, and those parts are left out.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily

from .graph import UNKNOWN, ElementType, Graph, Operator, OperatorKind, Role, Tensor, elements, length_bytes

TENSORS_MAX: Final = 1 << 16
OPERATORS_MAX: Final = 1 << 16
CODES_MAX: Final = 1 << 12
BUFFERS_MAX: Final = 1 << 17
RANK_MAX: Final = 16
ELEMENTS_MAX: Final = 1 << 40
OPERANDS_MAX: Final = 1 << 12
OPERANDS_TOTAL_MAX: Final = 1 << 19
"""Of a whole file: thousands of operators may point at the same operands, which costs the file nothing and the reader a lot."""
NAME_MAX: Final = 400
LEAST_BYTES: Final = 16
_IDENTIFIER: Final = b"TFL3"
_MAIN: Final = 0
_NAME: Final = 10
"""Where a tensor's table says where its name is: the fourth field of the schema."""
_CUSTOM_CODE: Final = 6
"""The same of an operator type's own name: the second field."""
_SPARE: Final = 1
"""The first buffers of a file may be empty or hold no tensor; index 0 always means "none"."""


class _MalformedError(Exception):
    """What the file says does not hold together."""


def read_tflite(model: bytes) -> Graph:
    """Read a .tflite file.

    Args:
        model: the file's bytes.

    Raises:
        BackendError: It is no .tflite file, or is damaged, or is beyond a limit.
    """
    if len(model) < LEAST_BYTES or model[4:8] != _IDENTIFIER:
        raise BackendError("this is no .tflite file", hint="export the model again")
    try:
        return _Reader(model).graph()
    except (
        _MalformedError,
        struct.error,
        ValueError,
        IndexError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
    ) as error:
        # The generated schema checks nothing: a wrong offset ends in any of these.
        said = str(error) if isinstance(error, _MalformedError) else "an offset leads nowhere"
        raise BackendError(f"the .tflite file is damaged: {said}", hint="export the model again") from error


class _Reader:
    """One reading of one file."""

    def __init__(self, model: bytes) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._types = {
            value: _ELEMENTS.get(name, ElementType.OTHER)
            for name, value in vars(schema.TensorType).items()
            if isinstance(value, int)
        }
        self._natives = {
            value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)
        }
        self._model = schema.Model.GetRootAs(model, 0)
        self._length = len(model)
        self._operands = 0

    def graph(self) -> Graph:
        """Read the main graph."""
        if not _count(self._model.SubgraphsLength(), CODES_MAX, "graphs"):
            raise _MalformedError("it has no graph")
        _count(self._model.BuffersLength(), BUFFERS_MAX, "buffers")
        codes = [
            self._code(place)
            for place in range(_count(self._model.OperatorCodesLength(), CODES_MAX, "operator types"))
        ]
        main = self._model.Subgraphs(_MAIN)
        dynamic: list[str] = []
        tensors = tuple(
            self._tensor(main.Tensors(place), dynamic)
            for place in range(_count(main.TensorsLength(), TENSORS_MAX, "tensors"))
        )
        origins: dict[int, int] = {}
        operators = [
            self._operator(main.Operators(place), codes, tensors, origins)
            for place in range(_count(main.OperatorsLength(), OPERATORS_MAX, "operators"))
        ]
        return Graph(
            RuntimeFamily.TFLITE, tensors, tuple(operators), _indices(main.InputsLength(), main.Inputs, tensors),
            _indices(main.OutputsLength(), main.Outputs, tensors), int(self._model.Version()),
            custom=tuple(sorted({native for native, is_custom in codes if is_custom} & {one.native for one in operators})),
            external=self._external(), dynamic=tuple(dynamic),
            nested=tuple(sorted({one.native for one in operators} & _NESTED)),
        )  # fmt: skip

    def _code(self, place: int) -> tuple[str, bool]:
        code = self._model.OperatorCodes(place)
        number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())  # the older field ends at 127
        native = self._natives.get(number)
        if native is None:
            raise _MalformedError(f"operator type {number} does not exist")
        return (_text(code, _CUSTOM_CODE) or native, True) if native == "CUSTOM" else (native, False)

    def _tensor(self, tensor: Any, dynamic: list[str]) -> Tensor:
        name = _text(tensor, _NAME)
        element = self._types.get(tensor.Type())
        if element is None:
            raise _MalformedError(f"tensor {name!r} has an unknown type")
        shape = [
            int(tensor.Shape(axis)) for axis in range(_count(tensor.ShapeLength(), RANK_MAX, "dimensions"))
        ]
        signature = [
            int(tensor.ShapeSignature(axis))
            for axis in range(_count(tensor.ShapeSignatureLength(), RANK_MAX, "dimensions"))
        ]
        if len(signature) == len(shape):
            shape = [
                UNKNOWN if free == UNKNOWN and axis else size
                for axis, (size, free) in enumerate(zip(shape, signature, strict=True))
            ]
        if any(size < UNKNOWN for size in shape) or elements(shape) > ELEMENTS_MAX:
            raise _MalformedError(f"tensor {name!r} has the shape {shape}")
        stored = self._stored(tensor.Buffer())
        role = Role.VARIABLE if tensor.IsVariable() else Role.CONSTANT if stored else Role.ACTIVATION
        if UNKNOWN in shape and role is not Role.CONSTANT:
            dynamic.append(name)
        scales, scale, zero_point = _quantization(tensor.Quantization())
        return Tensor(
            name, tuple(shape), element, role, stored if role is Role.CONSTANT else length_bytes(shape, element), scales, scale,
            zero_point,
        )  # fmt: skip

    def _stored(self, buffer: int) -> int:
        """Bytes that the file holds for a buffer; 0 if it holds none."""
        if not 0 <= buffer < self._model.BuffersLength():
            raise _MalformedError(f"buffer {buffer} does not exist")
        if buffer < _SPARE:
            return 0
        data = self._model.Buffers(buffer)
        stored = int(data.DataLength()) or (int(data.Size()) if data.Offset() > 1 else 0)
        if stored > self._length:
            raise _MalformedError(f"buffer {buffer} is longer than the file")
        return stored

    def _external(self) -> tuple[str, ...]:
        """Names of groups of buffers that lie in other files, where the schema knows such."""
        count = getattr(self._model, "ExternalBuffersLength", lambda: 0)()
        return (f"{count} buffers in another file",) if count else ()

    def _operator(
        self,
        operator: Any,
        codes: Sequence[tuple[str, bool]],
        tensors: Sequence[Tensor],
        origins: dict[int, int],
    ) -> Operator:
        native, is_custom = codes[operator.OpcodeIndex()]
        self._operands += operator.InputsLength() + operator.OutputsLength()
        _count(self._operands, OPERANDS_TOTAL_MAX, "operands")
        inputs = _indices(operator.InputsLength(), operator.Inputs, tensors)
        outputs = _indices(operator.OutputsLength(), operator.Outputs, tensors)
        kind = OperatorKind.OTHER if is_custom else KINDS.get(native, OperatorKind.OTHER)
        name = tensors[outputs[0]].name if outputs else native
        if native in _UNPACKS and inputs and outputs and tensors[inputs[0]].role is Role.CONSTANT:
            origins[outputs[0]] = inputs[0]  # weights that are stored small and computed with as floats
        meant = [origins.get(index, index) for index in inputs]
        weights = (
            tuple(index for index in meant if tensors[index].role is Role.CONSTANT)
            if kind in _WITH_PARAMETERS
            else ()
        )
        work = _WORK.get(native, _none)(
            [tensors[index] for index in meant], [tensors[index] for index in outputs]
        )
        return Operator(
            name,
            native,
            kind,
            inputs,
            outputs,
            weights,
            sum(tensors[index].elements for index in weights),
            *work,
        )


def _quantization(found: Any) -> tuple[int, float, int]:
    if found is None or not found.ScaleLength():
        return 0, 0.0, 0
    scales = _count(found.ScaleLength(), TENSORS_MAX, "scales")
    zero_point = int(found.ZeroPoint(0)) if found.ZeroPointLength() else 0
    return scales, float(found.Scale(0)), zero_point


def _count(found: int, most: int, what: str) -> int:
    if found > most:
        raise _MalformedError(f"{found} {what}, more than {most}")
    return int(found)


def _indices(length: int, at: Callable[[int], int], tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """Read indices of tensors; -1 is an operand that was left out."""
    found = [int(at(place)) for place in range(_count(length, OPERANDS_MAX, "operands"))]
    if any(not UNKNOWN <= index < len(tensors) for index in found):
        raise _MalformedError("an operator reads a tensor that does not exist")
    return tuple(index for index in found if index != UNKNOWN)


def _text(found: Any, slot: int) -> str:
    """Read the beginning of a text: the schema's own function would copy all of it, and many tensors may share a long one."""
    table = found._tab  # noqa: SLF001  # what the generated code itself reads by
    place = table.Offset(slot)
    if not place:
        return ""
    start = table.Indirect(place + table.Pos)
    (length,) = struct.unpack_from("<I", table.Bytes, start)
    return bytes(table.Bytes[start + 4 : start + 4 + min(length, NAME_MAX)]).decode("utf-8", "replace")


Work = tuple[int, int, int]
"""MACs, depth and channels of an operator."""


def _none(_reads: Sequence[Tensor], _writes: Sequence[Tensor]) -> Work:
    return 0, 0, 0


def _convolution(weights: Tensor, out: Tensor, channels: int) -> Work:
    depth = weights.elements // max(channels, 1)
    return out.elements * depth, depth, channels


def _conv(reads: Sequence[Tensor], writes: Sequence[Tensor]) -> Work:
    return _convolution(reads[1], writes[0], reads[1].shape[0])


def _depthwise(reads: Sequence[Tensor], writes: Sequence[Tensor]) -> Work:
    return _convolution(reads[1], writes[0], reads[1].shape[-1])


def _transposed(reads: Sequence[Tensor], writes: Sequence[Tensor]) -> Work:
    _, weights, data = reads[:3]
    total = data.elements * (weights.elements // max(weights.shape[-1], 1))
    return total, -(-total // max(writes[0].elements, 1)), weights.shape[0]


def _linear(reads: Sequence[Tensor], writes: Sequence[Tensor]) -> Work:
    depth = reads[1].shape[-1]
    return writes[0].elements * depth, depth, reads[1].shape[0]


def _product(reads: Sequence[Tensor], writes: Sequence[Tensor]) -> Work:
    # Rows and depth of the first, columns of the result: right whichever of both is transposed.
    columns = max(writes[0].shape[-1], 1)
    total = reads[0].elements * columns
    return total, total // max(writes[0].elements, 1), columns


def _recurrent(reads: Sequence[Tensor], writes: Sequence[Tensor]) -> Work:
    data = reads[0]
    steps = data.elements // max(data.shape[-1], 1)
    each = sum(one.elements for one in reads[1:] if one.role is Role.CONSTANT and len(one.shape) == 2)
    return steps * each, each // max(writes[0].shape[-1], 1), writes[0].shape[-1]


def _svdf(reads: Sequence[Tensor], writes: Sequence[Tensor]) -> Work:
    return reads[1].elements + reads[2].elements, reads[1].shape[-1], writes[0].shape[-1]


_WORK: Final[Mapping[str, Callable[[Sequence[Tensor], Sequence[Tensor]], Work]]] = {
    "CONV_2D": _conv, "CONV_3D": _depthwise, "DEPTHWISE_CONV_2D": _depthwise, "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _linear, "BATCH_MATMUL": _product, "SVDF": _svdf, "UNIDIRECTIONAL_SEQUENCE_LSTM": _recurrent,
    "UNIDIRECTIONAL_SEQUENCE_RNN": _recurrent, "LSTM": _recurrent, "RNN": _recurrent,
    "BIDIRECTIONAL_SEQUENCE_LSTM": _recurrent, "BIDIRECTIONAL_SEQUENCE_RNN": _recurrent,
}  # fmt: skip


class _Names(enum.Enum):
    """Names of the schema's operators, by kind."""

    CONV = "CONV_2D CONV_3D"
    DEPTHWISE = "DEPTHWISE_CONV_2D"
    TRANSPOSED_CONV = "TRANSPOSE_CONV CONV_3D_TRANSPOSE"
    LINEAR = "FULLY_CONNECTED"
    MATMUL = "BATCH_MATMUL"
    RECURRENT = (
        "SVDF LSTM RNN UNIDIRECTIONAL_SEQUENCE_LSTM UNIDIRECTIONAL_SEQUENCE_RNN BIDIRECTIONAL_SEQUENCE_LSTM "
        "BIDIRECTIONAL_SEQUENCE_RNN"
    )
    POOL = "AVERAGE_POOL_2D MAX_POOL_2D L2_POOL_2D"
    NORMALIZATION = "L2_NORMALIZATION LOCAL_RESPONSE_NORMALIZATION"
    SOFTMAX = "SOFTMAX LOG_SOFTMAX"
    ACTIVATION = "RELU RELU6 RELU_N1_TO_1 RELU_0_TO_1 LOGISTIC TANH HARD_SWISH LEAKY_RELU ELU PRELU GELU"
    ELEMENTWISE = (
        "ADD SUB MUL DIV MAXIMUM MINIMUM SQUARED_DIFFERENCE ADD_N POW FLOOR_DIV FLOOR_MOD ABS NEG EXP LOG SQRT RSQRT SQUARE SIN "
        "COS ROUND CEIL FLOOR EQUAL NOT_EQUAL GREATER GREATER_EQUAL LESS LESS_EQUAL LOGICAL_AND LOGICAL_OR LOGICAL_NOT SELECT "
        "SELECT_V2 CUMSUM SIGN"
    )
    REDUCE = "MEAN SUM REDUCE_MAX REDUCE_MIN REDUCE_PROD REDUCE_ANY REDUCE_ALL ARG_MAX ARG_MIN TOPK_V2"
    MOVE = (
        "CONCATENATION PAD PADV2 MIRROR_PAD TRANSPOSE SLICE STRIDED_SLICE SPLIT SPLIT_V PACK UNPACK GATHER GATHER_ND TILE "
        "RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR DEPTH_TO_SPACE SPACE_TO_DEPTH BATCH_TO_SPACE_ND SPACE_TO_BATCH_ND BROADCAST_TO "
        "EMBEDDING_LOOKUP REVERSE_V2 FILL READ_VARIABLE ASSIGN_VARIABLE"
    )
    VIEW = "RESHAPE SQUEEZE EXPAND_DIMS SHAPE"
    QUANTIZE = "QUANTIZE DEQUANTIZE FAKE_QUANT CAST"


KINDS: Final[Mapping[str, OperatorKind]] = {
    native: OperatorKind[names.name] for names in _Names for native in names.value.split()
}
"""Kind of each operator of the schema whose kind is known."""
_WITH_PARAMETERS: Final = frozenset(
    {
        OperatorKind.CONV, OperatorKind.DEPTHWISE, OperatorKind.TRANSPOSED_CONV, OperatorKind.LINEAR, OperatorKind.MATMUL,
        OperatorKind.RECURRENT, OperatorKind.ELEMENTWISE, OperatorKind.ACTIVATION, OperatorKind.NORMALIZATION,
    }
)  # fmt: skip
_UNPACKS: Final = frozenset({"DEQUANTIZE", "DENSIFY"})
_NESTED: Final = frozenset(
    {"IF", "WHILE", "CALL", "CALL_ONCE", "STABLEHLO_COMPOSITE", "STABLEHLO_WHILE", "STABLEHLO_CASE"}
)
_ELEMENTS: Final = {
    **{one.name: one for one in ElementType}, "FLOAT8_E4M3FN": ElementType.FLOAT8, "FLOAT8_E5M2": ElementType.FLOAT8
}  # fmt: skip
