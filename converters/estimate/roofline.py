"""A model's latency on a class of hardware, estimated from what the profile says of it.

Decides the model: an operator takes as long as the slower of its products and its bytes, and the runtime's own time for
each operator and each request on top (Williams, Waterman and Patterson, "Roofline", 2009). Channels are rounded up to the
profile's block, as kernels compute whole blocks; an output element costs some products more, which is why layers that add
up few (depthwise ones, the first one) are slower than their MACs say. One thread. Pure.

A result is an estimate and is called so everywhere. Measurements of `edgeml measure` correct it: `correction` says by what
factor they differ, `calibrated` puts that into a profile.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from edgeml.errors import ConfigError
from edgeml.ids import Digest
from edgeml.manifest import RuntimeFamily
from edgeml.profile import OPTIONAL_UNITS, DeviceRuntime, HardwareProfile, Origin, Quantity

from .graph import WEIGHTED, Arithmetic, Graph, Operator, OperatorKind, Role, arithmetic, producers

OUTPUT_MACS: Final = 20
"""What an output element costs beside its products, in products: loading, rounding, storing. Fitted to onnxruntime's own
profile of two networks on an AVX2 machine: depthwise layers and the first one came out within a third of it."""
SLOWER: Final = {
    (RuntimeFamily.ONNX, Arithmetic.FLOAT16): 1.4,
    (RuntimeFamily.TFLITE, Arithmetic.FLOAT16): 1.0,
    (RuntimeFamily.ONNX, Arithmetic.INT16): 4.0,
    (RuntimeFamily.TFLITE, Arithmetic.INT16): 100.0,
    (RuntimeFamily.ONNX, Arithmetic.HYBRID): 1.0,
    (RuntimeFamily.TFLITE, Arithmetic.HYBRID): 1.3,
}
"""How much slower than its nearest rate (fp32 for floats, int8 for integers and hybrid) an arithmetic is: fp16 and int16 as
measured on x86-64 with two small networks, where LiteRT computed int16 activations with its reference kernels."""
CONV_INTEGER: Final = 8.0
"""onnxruntime's ConvInteger (dynamic int8) took 6 to 13 times as long as the fp32 convolution."""
_CHANNEL_BLOCKED: Final = frozenset({OperatorKind.CONV, OperatorKind.DEPTHWISE, OperatorKind.TRANSPOSED_CONV})
_INTEGERS: Final = frozenset({Arithmetic.INT8, Arithmetic.INT16, Arithmetic.HYBRID})
_FREE: Final = frozenset({OperatorKind.VIEW})
_US: Final = 1e6


class Bound(enum.Enum):
    """What an operator, or a whole model, spends most of its time on."""

    COMPUTE = "compute"
    MEMORY = "memory"
    OVERHEAD = "overhead"


class LayerEstimate(msgspec.Struct, frozen=True):
    """A row of the table: how long one operator takes, and on what."""

    name: str
    native: str
    arithmetic: Arithmetic
    macs: int
    padded_macs: int
    """With channels rounded up to the block."""
    latency_us: float
    bound: Bound


class Estimate(msgspec.Struct, frozen=True):
    """An estimated latency of one request with one sample, on one thread; never a measured one."""

    profile: str
    latency_ms: float
    compute_ms: float
    memory_ms: float
    overhead_ms: float
    bound: Bound
    layers: tuple[LayerEstimate, ...]
    label: str = "estimated"


class Observation(msgspec.Struct, frozen=True):
    """What `edgeml measure` measured: the median latency of one model on one machine."""

    profile: str
    model_sha256: Digest
    latency_p50_ms: float
    host: str


class Correction(msgspec.Struct, frozen=True):
    """By what factor measurements differ from estimates: their geometric mean, and the widest apart from that."""

    factor: float
    spread: float
    observations: int
    hosts: tuple[str, ...]


def can_estimate(profile: HardwareProfile, family: RuntimeFamily) -> bool:
    """Whether the profile has all the numbers that an estimate for this family needs."""
    fields = (*_rate_fields(family), "memory_bandwidth", "operator_overhead", "call_overhead")
    return all(getattr(profile, field) is not None for field in fields)


def estimate(graph: Graph, profile: HardwareProfile) -> Estimate:
    """Estimate the latency of a model.

    Raises:
        ConfigError: The profile lacks the numbers for it.
    """
    machine = _Machine.of(profile, graph.family)
    fused = _fused(graph)
    times = [
        _times(graph, operator, machine, free=place in fused)
        for place, operator in enumerate(graph.operators)
    ]
    compute, memory, overhead = (sum(one[part] for one in times) for part in range(3))
    overhead += machine.call_us
    by_bound = {Bound.COMPUTE: compute, Bound.MEMORY: memory, Bound.OVERHEAD: overhead}
    rows = tuple(
        LayerEstimate(
            operator.name, operator.native, arithmetic(graph, operator), operator.macs, padded_macs(operator, machine.block),
            sum(time), _largest(dict(zip(Bound, time, strict=True))),
        )
        for operator, time in zip(graph.operators, times, strict=True)
    )  # fmt: skip
    return Estimate(
        profile.name,
        (compute + memory + overhead) / 1e3,
        compute / 1e3,
        memory / 1e3,
        overhead / 1e3,
        _largest(by_bound),
        rows,
    )


def padded_macs(operator: Operator, block: int) -> int:
    """MACs of an operator with its output channels rounded up to the block."""
    return int(operator.macs * _padding(operator, block))


def correction(pairs: Sequence[tuple[Estimate, Observation]]) -> Correction:
    """Compare estimates with what was measured of the same models.

    Raises:
        ConfigError: There is none, or one is of another profile, or a latency is not positive.
    """
    if not pairs:
        raise ConfigError(
            "there is no measurement to calibrate with", hint="run `edgeml measure` on the device first"
        )
    for made, seen in pairs:
        if made.profile != seen.profile:
            raise ConfigError(
                f"a measurement is of {seen.profile}, not of {made.profile}",
                hint="give measurements of one class of hardware",
            )
        if not (math.isfinite(seen.latency_p50_ms) and seen.latency_p50_ms > 0 and made.latency_ms > 0):
            raise ConfigError(f"a measurement says {seen.latency_p50_ms} ms", hint="measure again")
    logs = [math.log(seen.latency_p50_ms / made.latency_ms) for made, seen in pairs]
    mean = sum(logs) / len(logs)
    spread = max(abs(one - mean) for one in logs)
    return Correction(
        math.exp(mean), math.exp(spread), len(pairs), tuple(sorted({seen.host for _, seen in pairs}))
    )


def calibrated(profile: HardwareProfile, found: Correction) -> HardwareProfile:
    """A profile whose estimates are multiplied by a correction; its numbers say from which measurements they are."""
    source = f"calibrated: {found.observations} measured models on {', '.join(found.hosts)}, which differed by up to {found.spread:.2f} times"
    changes = {}
    for field, unit in OPTIONAL_UNITS.items():
        quantity: Quantity | None = getattr(profile, field)
        if quantity is not None:
            value = quantity.value * found.factor if unit == "us" else quantity.value / found.factor
            changes[field] = Quantity(value, unit, Origin.MEASURED, source)
    return msgspec.structs.replace(profile, **changes)


class _Machine(msgspec.Struct, frozen=True):
    """A profile's numbers as rates."""

    float_macs_per_us: float
    integer_macs_per_us: float
    bytes_per_us: float
    operator_us: float
    call_us: float
    block: int
    family: RuntimeFamily
    moved: frozenset[Role]
    """What comes through the memory whose bandwidth the profile states: on a microcontroller weights alone, from flash."""

    @classmethod
    def of(cls, profile: HardwareProfile, family: RuntimeFamily) -> _Machine:
        if not can_estimate(profile, family):
            raise ConfigError(
                f"profile {profile.name} has no rates for {family.value}, so no latency can be estimated",
                hint=f"add {', '.join(OPTIONAL_UNITS)} to it, as the shipped ones have",
            )
        floats, integers, bandwidth, operator, call = (
            getattr(profile, field).value
            for field in (*_rate_fields(family), "memory_bandwidth", "operator_overhead", "call_overhead")
        )
        clock = profile.clock.value  # MHz are cycles a microsecond
        moved = (
            frozenset({Role.CONSTANT}) if DeviceRuntime.TFLITE_MICRO in profile.runtimes else frozenset(Role)
        )
        block = round(profile.channel_block.value)
        return cls(floats * clock, integers * clock, bandwidth / _US, operator, call, block, family, moved)

    def macs_per_us(self, operator: Operator, how: Arithmetic) -> float:
        rate = self.integer_macs_per_us if how in _INTEGERS else self.float_macs_per_us
        if operator.native == "ConvInteger":
            return self.float_macs_per_us / CONV_INTEGER
        return rate / SLOWER.get((self.family, how), 1.0)


def _rate_fields(family: RuntimeFamily) -> tuple[str, str]:
    return f"{family.value}_fp32_macs_per_cycle", f"{family.value}_int8_macs_per_cycle"


def _times(graph: Graph, operator: Operator, machine: _Machine, *, free: bool) -> tuple[float, float, float]:
    """Microseconds of compute, memory and overhead; of the first two only the longer counts."""
    if free or operator.kind in _FREE:
        return 0.0, 0.0, 0.0
    how = arithmetic(graph, operator)
    out = sum(graph.tensors[index].elements for index in operator.outputs)
    work = (operator.macs + OUTPUT_MACS * out) * _padding(operator, machine.block)
    compute = work / machine.macs_per_us(operator, how)
    tensors = [graph.tensors[index] for index in {*operator.inputs, *operator.outputs}]
    memory = sum(one.length_bytes for one in tensors if one.role in machine.moved) / machine.bytes_per_us
    return (compute, 0.0, machine.operator_us) if compute >= memory else (0.0, memory, machine.operator_us)


def _padding(operator: Operator, block: int) -> float:
    """How much more a kernel computes because it works on whole blocks of channels."""
    if operator.kind not in _CHANNEL_BLOCKED or not operator.channels:
        return 1.0
    return -(-operator.channels // block) * block / operator.channels


def _fused(graph: Graph) -> frozenset[int]:
    """Places of activations that a runtime makes part of the layer before them."""
    made_by = producers(graph)
    weighted = {
        place
        for place, one in enumerate(graph.operators)
        if one.kind in WEIGHTED or one.native in {"Add", "ADD"}
    }
    return frozenset(
        place
        for place, one in enumerate(graph.operators)
        if one.kind is OperatorKind.ACTIVATION and one.inputs and made_by.get(one.inputs[0]) in weighted
    )


def _largest(times: dict[Bound, float]) -> Bound:
    return max(times, key=lambda bound: times[bound])
