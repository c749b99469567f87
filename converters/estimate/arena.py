"""How much memory a model's tensors take while it runs.

Decides when each activation lives, where TensorFlow Lite Micro's greedy planner puts it, and what else lies in the tensor
arena. The arena is told as a range, because part of it depends on the pointers of the processor and on the kernels that the
firmware is built with: only the chip itself can tell the number (`MicroInterpreter::arena_used_bytes`). Pure.

Sources: TensorFlow Lite Micro's memory_management.md and greedy_memory_planner.h (head, tail, planner);
memory_arena_threshold_test.cc (sizes of one model on x86-64); CMSIS-NN's and ESP-NN's `get_buffer_size` functions
(scratch). The sizes of structures were checked against the real interpreter on x86-64 (tflite-micro, October 2026) with
`print_allocations`, and against published logs of 32-bit boards.
"""

from __future__ import annotations

import bisect
import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from edgeml.profile import Architecture

from .graph import Arithmetic, Graph, Operator, OperatorKind, Role, arithmetic

ALIGNMENT: Final = 16
"""TensorFlow Lite Micro aligns every buffer in the arena to so many bytes."""
SUGGESTION_STEP: Final = 1024
PLANNED_MAX: Final = 2048
"""A model of more activations is for no microcontroller: its plan is not made, and the peak stands for it."""


class Kernels(enum.Enum):
    """Libraries of kernels that a firmware may be built with; they need different scratch memory."""

    REFERENCE = "reference"
    CMSIS_NN = "CMSIS-NN"
    ESP_NN = "ESP-NN"


ALL_KERNELS: Final = frozenset(Kernels)


def kernels_of(architecture: Architecture) -> frozenset[Kernels]:
    """Which libraries of kernels a processor may have: the portable one, and its maker's."""
    own = {Architecture.ARMV7E_M: Kernels.CMSIS_NN, Architecture.XTENSA: Kernels.ESP_NN}
    return frozenset({Kernels.REFERENCE, own.get(architecture, Kernels.REFERENCE)})


@dataclass(frozen=True, slots=True)
class Buffer:
    """Memory that is needed from the operator `first` to the operator `last`, both included."""

    length_bytes: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at the same time."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True, slots=True)
class Plan:
    """Where buffers lie, in bytes from the start, and how much memory they take together."""

    offsets: tuple[int, ...]
    length_bytes: int


class Part(msgspec.Struct, frozen=True):
    """A part of the arena, and why it is as large as it is."""

    what: str
    low_bytes: int
    high_bytes: int
    why: str


class Arena(msgspec.Struct, frozen=True):
    """A tensor arena as a range. `head_bytes` is the activations' part alone, which both ends hold."""

    low_bytes: int
    high_bytes: int
    head_bytes: int
    parts: tuple[Part, ...]

    @property
    def suggested_bytes(self) -> int:
        """What to reserve first: the high end, rounded up to whole KiB."""
        return -(-self.high_bytes // SUGGESTION_STEP) * SUGGESTION_STEP

    @property
    def reason(self) -> str:
        """Why that is suggested."""
        return (
            f"the high end of {self.low_bytes} to {self.high_bytes} bytes, rounded up to KiB; "
            "once it runs, shrink it to what arena_used_bytes() says"
        )


def aligned(length_bytes: int) -> int:
    """Round up to the arena's alignment.

    >>> aligned(0), aligned(1), aligned(16)
    (0, 16, 16)
    """
    return -(-length_bytes // ALIGNMENT) * ALIGNMENT


def plan(buffers: Sequence[Buffer]) -> Plan:
    """Place buffers as TensorFlow Lite Micro's greedy planner does.

    The largest comes first, at the start, and of equal ones the last; each next one goes into the first gap that is large
    enough between those that are needed at the same time as it, or behind the last of them. Lengths are rounded up to the
    alignment. Takes time by the square of their number.
    """
    order = sorted(range(len(buffers)), key=lambda place: (-aligned(buffers[place].length_bytes), -place))
    offsets = [0] * len(buffers)
    placed: list[tuple[int, int, Buffer]] = []  # where it starts, where it ends, which; by where it starts
    for place in order:
        wanted = aligned(buffers[place].length_bytes)
        start = 0
        for begin, end, other in placed:
            if not other.meets(buffers[place]):
                continue
            if begin - start >= wanted:
                break
            start = max(start, end)
        offsets[place] = start
        bisect.insort(placed, (start, start + wanted, buffers[place]), key=lambda one: one[0])
    return Plan(tuple(offsets), max((end for _, end, _ in placed), default=0))


def lifetimes(graph: Graph) -> tuple[Buffer, ...]:
    """Activations with the operators between which they are needed.

    A model's inputs are there before the first operator, its outputs are kept until the last. Weights stay in the file and
    variables have a place of their own.
    """
    end = len(graph.operators)
    first = dict.fromkeys(graph.inputs, 0)
    last = dict.fromkeys(graph.outputs, end)
    for place, operator in enumerate(graph.operators, start=1):
        for index in operator.outputs:
            first.setdefault(index, place)
            last[index] = max(last.get(index, 0), place)
        for index in operator.inputs:
            last[index] = max(last.get(index, 0), place)
    return tuple(
        Buffer(graph.tensors[index].length_bytes, first[index], last.get(index, first[index]))
        for index in sorted(first)
        if graph.tensors[index].role is Role.ACTIVATION
    )


def peak_activation_bytes(graph: Graph) -> int:
    """The most that activations take at any operator, each rounded up to the alignment: no planner can do with less."""
    return _peak(lifetimes(graph))


def _peak(buffers: Sequence[Buffer]) -> int:
    steps = [0] * (max((buffer.last for buffer in buffers), default=0) + 2)
    for buffer in buffers:
        steps[buffer.first] += aligned(buffer.length_bytes)
        steps[buffer.last + 1] -= aligned(buffer.length_bytes)
    most = now = 0
    for change in steps:
        now += change
        most = max(most, now)
    return most


def arena(graph: Graph, kernels: frozenset[Kernels] = ALL_KERNELS) -> Arena:
    """Estimate the arena that TensorFlow Lite Micro needs for a model.

    Args:
        graph: of a .tflite file.
        kernels: libraries that the firmware may be built with; the high end is of the one that takes most.
    """
    low = _build(graph, _LOW, Kernels.REFERENCE)
    builds = (_build(graph, _HIGH, one) for one in sorted(kernels, key=lambda one: one.value))
    high = max(builds, key=lambda one: one.needed)
    head = _head(lifetimes(graph))
    parts = (
        Part("activations", low.head, low.head, "alive at the same time, as the greedy planner places them, 16-byte aligned"),
        Part("scratch of kernels", 0, high.head - low.head, f"the reference kernels take least; {high.kernels.value} most"),
        Part(
            "planning", 0, max(0, high.planning - high.head),
            "the planner's lists, while the model is loaded, where they are larger than the activations; arena_used_bytes() is without",
        ),
        Part("variables", low.variables, high.variables, "state that outlives a request"),
        Part("tensors and operators", low.structures, high.structures, "12 to 24 bytes a tensor and 32 to 64 an operator, by the pointers"),
        Part("operators' own data", low.operators, high.operators, "settings, and 8 bytes an output channel of a convolution"),
        Part("interpreter", _LOW.fixed, _HIGH.fixed, "its own objects; the high end is with recording"),
    )  # fmt: skip
    return Arena(low.used, high.needed, head, tuple(one for one in parts if one.high_bytes))


def _head(buffers: Sequence[Buffer]) -> int:
    return plan(buffers).length_bytes if len(buffers) <= PLANNED_MAX else _peak(buffers)


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Sizes of the interpreter's structures, in bytes."""

    tensor: int
    node: int
    boundary: int
    """An input or output of the model, which has a structure of its own."""
    scales: int
    """What is kept of the quantization of such a tensor."""
    handle: int
    planned: int
    """What planning takes for a tensor."""
    buffer: int
    """What planning takes for a buffer that it places."""
    fixed: int
    builtin: int
    """Parsed options of an operator."""
    own: int
    """In percent: how large an operator's own data are beside those of a 64-bit build."""


_LOW: Final = _Sizes(
    tensor=12, node=32, boundary=32, scales=20, handle=4, planned=24, buffer=36, fixed=220, builtin=12, own=60
)
"""32-bit pointers, built with TF_LITE_STATIC_MEMORY, reference kernels."""
_HIGH: Final = _Sizes(
    tensor=24,
    node=64,
    boundary=112,
    scales=32,
    handle=8,
    planned=32,
    buffer=36,
    fixed=1536,
    builtin=40,
    own=110,
)
"""64-bit pointers, without TF_LITE_STATIC_MEMORY, with what recording and compressed weights add in a published log."""
_OWN: Final = {
    OperatorKind.CONV: 80, OperatorKind.DEPTHWISE: 80, OperatorKind.TRANSPOSED_CONV: 96, OperatorKind.LINEAR: 72,
    OperatorKind.MATMUL: 96, OperatorKind.RECURRENT: 128, OperatorKind.SOFTMAX: 80, OperatorKind.ELEMENTWISE: 64,
    OperatorKind.POOL: 32, OperatorKind.VIEW: 0, OperatorKind.QUANTIZE: 32, OperatorKind.ACTIVATION: 40,
}  # fmt: skip
"""Bytes of an operator's own data in a 64-bit build; solved from `print_allocations` of five models."""
_OWN_OTHER: Final = 64
_CHANNEL_BYTES: Final = 8
"""A multiplier and a shift, int32 each, for every output channel of a convolution."""
_LSTM_BYTES: Final = 1024
"""An LSTM keeps the settings of its gates."""


@dataclass(frozen=True, slots=True)
class _Build:
    """An arena of one build."""

    kernels: Kernels
    head: int
    planning: int
    variables: int
    structures: int
    operators: int
    fixed: int

    @property
    def used(self) -> int:
        """Once the model is loaded."""
        return self.head + self.variables + self.structures + self.operators + self.fixed

    @property
    def needed(self) -> int:
        """While it is loaded."""
        return self.used + max(0, self.planning - self.head)


def _build(graph: Graph, sizes: _Sizes, kernels: Kernels) -> _Build:
    scratch = [
        Buffer(length, place, place)
        for place, operator in enumerate(graph.operators, start=1)
        for length in _scratch(graph, operator, kernels)
        if length
    ]
    buffers = [*lifetimes(graph), *scratch]
    boundary = [graph.tensors[index] for index in (*graph.inputs, *graph.outputs)]
    structures = (
        sizes.tensor * len(graph.tensors) + sizes.node * len(graph.operators) + sizes.boundary * len(boundary)
        + sizes.scales * sum(one.quantized for one in boundary) + sizes.handle * len(scratch)
    )  # fmt: skip
    return _Build(
        kernels,
        _head(buffers),
        sizes.planned * (len(graph.tensors) + len(scratch)) + sizes.buffer * len(buffers),
        sum(aligned(one.length_bytes) for one in graph.tensors if one.role is Role.VARIABLE),
        structures,
        sum(_operator_bytes(graph, operator, sizes) for operator in graph.operators),
        sizes.fixed,
    )


def _operator_bytes(graph: Graph, operator: Operator, sizes: _Sizes) -> int:
    own = _OWN.get(operator.kind, _OWN_OTHER)
    if operator.native == "UNIDIRECTIONAL_SEQUENCE_LSTM":
        own = _LSTM_BYTES
    by_channel = operator.kind in {OperatorKind.CONV, OperatorKind.DEPTHWISE, OperatorKind.TRANSPOSED_CONV}
    channels = _CHANNEL_BYTES * operator.channels if by_channel else 0
    if operator.kind is OperatorKind.LINEAR and any(
        graph.tensors[index].scales > 1 for index in operator.weights
    ):
        channels = _CHANNEL_BYTES * operator.channels
    return own * sizes.own // 100 + channels + sizes.builtin


def _scratch(graph: Graph, operator: Operator, kernels: Kernels) -> Iterable[int]:
    """Scratch memory of an operator, in bytes, an entry a buffer."""
    if operator.native == "SVDF":  # sums of the features and of the outputs, int32, in every library
        filters = graph.tensors[operator.inputs[1]].shape[0]
        return (4 * filters, 4 * operator.channels)
    if operator.kind is OperatorKind.TRANSPOSED_CONV:  # sums of the outputs, int32
        return (4 * sum(graph.tensors[index].elements for index in operator.outputs),)
    integer = arithmetic(graph, operator) in {Arithmetic.INT8, Arithmetic.INT16}
    if (
        operator.kind not in {OperatorKind.CONV, OperatorKind.DEPTHWISE}
        or kernels is Kernels.REFERENCE
        or not integer
    ):
        return ()  # floats are left to the reference kernels by every library
    return (_cmsis_nn(operator) if kernels is Kernels.CMSIS_NN else _esp_nn(graph, operator),)


def _cmsis_nn(operator: Operator) -> int:
    """Two columns of int16 (DSP extension); a depthwise one holds the window of every channel."""
    window = operator.depth * (operator.channels if operator.kind is OperatorKind.DEPTHWISE else 1)
    return 2 * 2 * window


def _esp_nn(graph: Graph, operator: Operator) -> int:
    """Copies of the input and the weights: padded, with channels rounded up, as int16 where no kernel takes bytes.

    An upper end of the cases in the ESP32-S3's functions of 2025; a version before them took up to twice as much.
    """
    data, weights = (graph.tensors[index] for index in operator.inputs[:2])
    if len(data.shape) != 4 or len(weights.shape) != 4:
        return 2 * (data.elements + weights.elements)
    _, height, width, channels = data.shape
    rows, columns = weights.shape[1:3]
    plain, padded = height * width, (height + rows - 1) * (width + columns - 1)
    eights, sixteens = (-(-channels // block) * block for block in (8, 16))
    out = graph.tensors[operator.outputs[0]].elements
    if operator.kind is OperatorKind.DEPTHWISE:
        if (rows, columns) == (3, 3) and channels % 8 == 0 and channels >= _ESP_NN_BYTES_FROM:
            compacted = out * sixteens // channels if channels % 16 else 0
            return (rows * columns + padded) * sixteens + compacted + 64
        return 2 * (rows * columns + plain) * eights + out * eights // max(channels, 1) + 12 * eights + 64
    filters = operator.channels * rows * columns
    if (rows, columns) == (1, 1):
        return filters * eights + (plain * eights if channels % 8 else 0) + 16 * eights + 32
    return 2 * (filters * sixteens + padded * channels) + 4 * operator.channels + 32


_ESP_NN_BYTES_FROM: Final = 12
"""From so many channels on, depthwise kernels of 3x3 take bytes and pad the channels to 16."""
