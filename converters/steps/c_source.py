"""A .tflite file as C++ source for TensorFlow Lite Micro: the array, what the firmware must know of it, and its operators.

Decides which operators TensorFlow Lite Micro has, what it refuses or gets wrong, and the form of the two files. Nothing of
the model's own text (names of tensors) is written into them, as that could be anything. How large the arena must be is
estimated in `estimate/arena.py`.

Sources: `micro_mutable_op_resolver.h` of TensorFlow Lite Micro (2025) for the operators and their `Add` functions;
`conv_common.cc` for its refusal of hybrid models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

import msgspec

from edgeml.errors import BackendError
from edgeml.ids import digest_of

from ..estimate.arena import ALIGNMENT, ALL_KERNELS, Arena, Kernels, arena
from ..estimate.graph import Arithmetic, ElementType, Graph, Tensor, arithmetic
from ..estimate.tflite_graph import read_tflite

MODEL_BYTES_MAX: Final = 32 << 20
"""No microcontroller holds more; as text it is six times as long."""
BYTES_A_LINE: Final = 16
TFLM_HEADER: Final = "tensorflow/lite/micro/micro_mutable_op_resolver.h"
_BUILTIN: Final = (
    "ABS ADD ADD_N ARG_MAX ARG_MIN ASSIGN_VARIABLE AVERAGE_POOL_2D BATCH_MATMUL BATCH_TO_SPACE_ND BROADCAST_ARGS BROADCAST_TO "
    "CALL_ONCE CAST CEIL CONCATENATION CONV_2D COS CUMSUM DEPTH_TO_SPACE DEPTHWISE_CONV_2D DEQUANTIZE DIV ELU EMBEDDING_LOOKUP "
    "EQUAL EXP EXPAND_DIMS FILL FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GATHER_ND GREATER GREATER_EQUAL HARD_SWISH IF "
    "L2_NORMALIZATION L2_POOL_2D LEAKY_RELU LESS LESS_EQUAL LOG LOGICAL_AND LOGICAL_NOT LOGICAL_OR LOGISTIC LOG_SOFTMAX MAXIMUM "
    "MAX_POOL_2D MEAN MINIMUM MIRROR_PAD MUL NEG NOT_EQUAL PACK PAD PADV2 PRELU QUANTIZE READ_VARIABLE REDUCE_MAX REDUCE_MIN RELU "
    "RELU6 RESHAPE RESIZE_BILINEAR RESIZE_NEAREST_NEIGHBOR REVERSE_V2 ROUND RSQRT SELECT_V2 SHAPE SIN SLICE SOFTMAX "
    "SPACE_TO_BATCH_ND SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SQUEEZE STRIDED_SLICE SUB SUM SVDF TANH "
    "TRANSPOSE TRANSPOSE_CONV UNIDIRECTIONAL_SEQUENCE_LSTM UNPACK VAR_HANDLE WHILE ZEROS_LIKE"
)
_IRREGULAR: Final = {
    "BATCH_MATMUL": "AddBatchMatMul", "CUMSUM": "AddCumSum", "PADV2": "AddPadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "AddUnidirectionalSequenceLSTM",
}  # fmt: skip
_OWN: Final = {
    "CIRCULAR_BUFFER": "AddCircularBuffer", "TFLite_Detection_PostProcess": "AddDetectionPostprocess",
    "SignalDelay": "AddDelay", "SignalEnergy": "AddEnergy", "SignalFftAutoScale": "AddFftAutoScale",
    "SignalFilterBank": "AddFilterBank", "SignalFilterBankLog": "AddFilterBankLog",
    "SignalFilterBankSquareRoot": "AddFilterBankSquareRoot",
    "SignalFilterBankSpectralSubtraction": "AddFilterBankSpectralSubtraction", "SignalFramer": "AddFramer",
    "SignalIrfft": "AddIrfft", "SignalOverlapAdd": "AddOverlapAdd", "SignalPCAN": "AddPCAN", "SignalRfft": "AddRfft",
    "SignalStacker": "AddStacker", "SignalWindow": "AddWindow",
}  # fmt: skip
"""Custom operators that TensorFlow Lite Micro brings itself."""


def _function(native: str) -> str:
    words = (word if word[0].isdigit() else word.capitalize() for word in native.split("_"))
    return _IRREGULAR.get(native, "Add" + "".join(words))


OPERATORS: Final = {native: _function(native) for native in _BUILTIN.split()} | _OWN
"""Operators that TensorFlow Lite Micro has, and the function of its resolver that adds each."""


class CSource(msgspec.Struct, frozen=True):
    """Two files, the name of both without an ending, and what was written into them."""

    name: str
    header: str
    source: str
    operators: tuple[str, ...]
    arena: Arena


def refusals(graph: Graph) -> tuple[str, ...]:
    """Say why TensorFlow Lite Micro would refuse a model, or answer wrongly; empty if it takes it."""
    return tuple(dict.fromkeys(_refusals(graph)))


def write_c_source(
    model: bytes, name: str, kernels: frozenset[Kernels] = ALL_KERNELS, file: str = ""
) -> CSource:
    """Write a .tflite file as C++ source. Same bytes and names, same source.

    Args:
        model: the file's bytes.
        name: what the namespace is called after, with `_model` behind it.
        kernels: libraries that the firmware may be built with; they decide the high end of the arena.
        file: name of both files without an ending; that of the namespace if empty.

    Raises:
        BackendError: The file is damaged, or TensorFlow Lite Micro would not run it as it is meant.
    """
    graph = read_tflite(model)
    refused = refusals(graph)
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        raise BackendError(
            f"TensorFlow Lite Micro does not take this model: {refused[0]}{more}",
            hint="quantize it to static int8 with a batch of 1, and use only operators that it has",
        )
    if len(model) > MODEL_BYTES_MAX:
        raise BackendError(
            f"the model has {len(model)} bytes, more than {MODEL_BYTES_MAX}, which no microcontroller holds",
            hint="train a smaller model",
        )
    stem = re.sub(r"[^a-z0-9_]", "_", name.lower()).strip("_") + "_model"
    stem = stem if stem[0].isalpha() else f"m_{stem}"
    operators = tuple(sorted({one.native for one in graph.operators}))
    space = arena(graph, kernels)
    facts = _Facts(stem, len(model), digest_of(model), graph, operators, space)
    file = file or stem
    return CSource(file, _header(facts), _source(facts, model, f"{file}.h"), operators, space)


class _Facts(msgspec.Struct, frozen=True):
    stem: str
    length_bytes: int
    sha256: str
    graph: Graph
    operators: tuple[str, ...]
    space: Arena


def _refusals(graph: Graph) -> Iterator[str]:
    for one in graph.operators:
        if one.native not in OPERATORS:
            yield f"it has no operator {one.native}"
        if arithmetic(graph, one) is Arithmetic.HYBRID:
            yield f"{one.native} is hybrid (float activations, integer weights), which it refuses by name"
        elif any(graph.tensors[index].element is ElementType.FLOAT16 for index in one.inputs):
            yield f"{one.native} reads float16, for which it has no kernel"
        if one.native == "DEQUANTIZE" and any(graph.tensors[index].scales > 1 for index in one.inputs):
            yield "DEQUANTIZE reads weights with a scale a channel, of which it would use the first for all"
    for name in graph.dynamic:
        yield f"the shape of tensor {name[:60]!r} is free, and it plans its memory once"
    for name in graph.nested:
        yield f"{name} runs another graph, whose memory is not estimated"
    for index in (*graph.inputs, *graph.outputs):
        tensor = graph.tensors[index]
        if tensor.element not in _C_TYPES:
            yield f"an input or output is {tensor.element.value}"
        if not math.isfinite(tensor.scale):
            yield "a scale is no number"


_C_TYPES: Final = {
    ElementType.FLOAT32: "float", ElementType.INT8: "std::int8_t", ElementType.UINT8: "std::uint8_t",
    ElementType.INT16: "std::int16_t", ElementType.INT32: "std::int32_t", ElementType.INT64: "std::int64_t",
    ElementType.BOOL: "bool",
}  # fmt: skip


def _header(facts: _Facts) -> str:
    guard = f"{facts.stem.upper()}_H_"
    boundary = [
        line
        for kind, indices in (("Input", facts.graph.inputs), ("Output", facts.graph.outputs))
        for place, index in enumerate(indices)
        for line in _boundary(f"k{kind}{place}", facts.graph.tensors[index])
    ]
    return "\n".join(
        [
            "// A model for TensorFlow Lite Micro, made by edgeml. Do not edit.",
            f"// sha256 of the .tflite file: {facts.sha256}",
            f"#ifndef {guard}",
            f"#define {guard}",
            "",
            "#include <cstddef>",
            "#include <cstdint>",
            "",
            f'#if defined(__has_include) && __has_include("{TFLM_HEADER}")',
            f'#include "{TFLM_HEADER}"',
            f"#define {guard}TFLM 1",
            "#endif",
            "",
            f"namespace {facts.stem} {{",
            "",
            f"constexpr std::size_t kLengthBytes = {facts.length_bytes};",
            f"alignas({ALIGNMENT}) extern const unsigned char kData[kLengthBytes];",
            "",
            "// The tensor arena, estimated from the file: activations by lifetime, and what the interpreter keeps.",
            *(f"//   {part.what}: {part.low_bytes} to {part.high_bytes} bytes" for part in facts.space.parts),
            f"constexpr std::size_t kArenaLowBytes = {facts.space.low_bytes};",
            f"constexpr std::size_t kArenaHighBytes = {facts.space.high_bytes};",
            f"// Suggested: {facts.space.reason}.",
            f"constexpr std::size_t kArenaSuggestedBytes = {facts.space.suggested_bytes};",
            "",
            "// A real number is (integer - zero point) * scale.",
            *boundary,
            "",
            f"#ifdef {guard}TFLM",
            f"using Resolver = tflite::MicroMutableOpResolver<{len(facts.operators)}>;",
            "// Adds the operators of this model and no others.",
            "TfLiteStatus AddOperators(Resolver& resolver);",
            "#endif",
            "",
            f"}}  // namespace {facts.stem}",
            "",
            f"#endif  // {guard}",
            "",
        ]
    )


def _boundary(prefix: str, tensor: Tensor) -> Iterator[str]:
    yield f"using {prefix[1:]}Type = {_C_TYPES[tensor.element]};"
    yield f"constexpr std::size_t {prefix}Elements = {tensor.elements};"
    shape = ", ".join(map(str, tensor.shape))
    if tensor.shape:
        yield f"constexpr int {prefix}Shape[] = {{{shape}}};"
    if tensor.quantized:
        yield f"constexpr float {prefix}Scale = {tensor.scale!r}F;"
        yield f"constexpr int {prefix}ZeroPoint = {tensor.zero_point};"


def _source(facts: _Facts, model: bytes, header: str) -> str:
    rows = (model[start : start + BYTES_A_LINE] for start in range(0, len(model), BYTES_A_LINE))
    calls = [
        f"  if (resolver.{OPERATORS[native]}() != kTfLiteOk) return kTfLiteError;"
        for native in facts.operators
    ]
    return "\n".join(
        [
            "// A model for TensorFlow Lite Micro, made by edgeml. Do not edit.",
            f'#include "{header}"',
            "",
            f"namespace {facts.stem} {{",
            "",
            f"alignas({ALIGNMENT}) const unsigned char kData[kLengthBytes] = {{",
            *("    " + "".join(f"0x{byte:02x}," for byte in row) for row in rows),
            "};",
            "",
            f"#ifdef {facts.stem.upper()}_H_TFLM",
            "TfLiteStatus AddOperators(Resolver& resolver) {",
            *calls,
            "  return kTfLiteOk;",
            "}",
            "#endif",
            "",
            f"}}  // namespace {facts.stem}",
            "",
        ]
    )
