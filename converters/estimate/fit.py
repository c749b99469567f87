"""Whether a model fits a class of hardware, and what would make it fit.

Decides what is compared with what: the runtime with the file, the file's length with the storage, the arena (or weights,
activations and runtime) with the memory; and which remedy is named for what does not fit. Everything but the file's length
is an estimate, and says so. Pure: how a file is read and shown is the business of `fit_command.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Final

import msgspec

from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime, HardwareProfile

from ..steps.c_source import refusals
from ..units import size
from .arena import arena, kernels_of, peak_activation_bytes
from .graph import Graph, macs, parameters, weight_bytes
from .integer_graph import as_integers, can_be_integer, int8_file_bytes, is_integer
from .roofline import Bound, can_estimate, estimate

RUNTIME_BYTES: Final = {
    DeviceRuntime.ONNXRUNTIME: 66_000_000, DeviceRuntime.AI_EDGE_LITERT: 49_000_000, DeviceRuntime.TFLITE_RUNTIME: 45_000_000,
}  # fmt: skip
"""What a process with Python, numpy and the runtime takes before a model: measured on an x86-64 host with one thread."""
RUNTIME_SPREAD: Final = 1.4
"""How much more it may be on another system."""
COPIES: Final = 2
"""A runtime may keep weights twice: as in the file, and as its kernels want them."""
_RUNTIMES: Final = {
    RuntimeFamily.ONNX: (DeviceRuntime.ONNXRUNTIME,),
    RuntimeFamily.TFLITE: (
        DeviceRuntime.AI_EDGE_LITERT,
        DeviceRuntime.TFLITE_RUNTIME,
        DeviceRuntime.TFLITE_MICRO,
    ),
}
"""Which runtimes load a family, the one that is preferred first."""


class Verdict(enum.Enum):
    """Whether it fits."""

    FITS = "fits"
    PERHAPS = "perhaps"
    """What is needed is a range, and the budget lies in it."""
    NOT = "does not fit"


class Obstacle(enum.Enum):
    """What is in the way."""

    RUNTIME = "runtime"
    OPERATORS = "operators"
    STORAGE = "storage"
    MEMORY = "memory"


class Finding(msgspec.Struct, frozen=True):
    """One thing that is in the way, and what would remove it."""

    obstacle: Obstacle
    problem: str
    remedy: str


class Fit(msgspec.Struct, frozen=True):
    """How a model and a profile go together. Bytes; the latency is an estimate of one request on one thread."""

    profile: str
    verdict: Verdict
    runtime: str
    """Empty if it has none for such a file."""
    storage_bytes: int
    storage_budget_bytes: int
    memory_low_bytes: int
    memory_high_bytes: int
    memory_budget_bytes: int
    memory_of: str
    """What the range is of: the tensor arena, or the whole process."""
    latency_ms: float | None
    bound: Bound | None
    findings: tuple[Finding, ...]


class ModelFacts(msgspec.Struct, frozen=True):
    """What is told of the model itself."""

    family: RuntimeFamily
    length_bytes: int
    macs: int
    parameters: int
    weight_bytes: int
    peak_activation_bytes: int
    integer: bool
    unknown_shapes: int
    """Tensors of which more than the batch is free or nothing could be said: then the estimates are of what is known."""


class FitReport(msgspec.Struct, frozen=True):
    """A model and how it fits each profile."""

    model: ModelFacts
    fits: tuple[Fit, ...]


def facts(graph: Graph, length_bytes: int) -> ModelFacts:
    """What is told of the model itself."""
    return ModelFacts(
        graph.family,
        length_bytes,
        macs(graph),
        parameters(graph),
        weight_bytes(graph),
        peak_activation_bytes(graph),
        is_integer(graph),
        len(graph.dynamic),
    )


def fit(graph: Graph, length_bytes: int, profile: HardwareProfile) -> Fit:
    """Say whether a model fits a profile.

    Args:
        graph: of the model's file.
        length_bytes: of the model's file.
        profile: the class of hardware.
    """
    runtime = next((one for one in _RUNTIMES[graph.family] if one in profile.runtimes), None)
    low, high = _memory(graph, runtime, profile)
    findings = tuple(_findings(graph, length_bytes, profile, runtime))
    budget = int(profile.model_memory.value)
    verdict = Verdict.NOT if findings else Verdict.PERHAPS if high > budget else Verdict.FITS
    timed = estimate(graph, profile) if runtime is not None and can_estimate(profile, graph.family) else None
    return Fit(
        profile.name, verdict, "" if runtime is None else runtime.value, length_bytes, int(profile.model_storage.value),
        low, high, budget, "tensor arena" if _is_micro(profile) else "process",
        None if timed is None else timed.latency_ms, None if timed is None else timed.bound, findings,
    )  # fmt: skip


def _findings(
    graph: Graph, length_bytes: int, profile: HardwareProfile, runtime: DeviceRuntime | None
) -> Iterator[Finding]:
    if runtime is None:
        has = ", ".join(one.value for one in profile.runtimes) or "no runtime"
        yield Finding(
            Obstacle.RUNTIME, f"it has {has}, which does not load .{graph.family.value}",
            f"convert the model to .{_other(graph.family).value} from its source",
        )  # fmt: skip
    yield from _refused(graph, runtime)
    storage = profile.model_storage.value
    if length_bytes > storage:
        yield Finding(
            Obstacle.STORAGE,
            f"the file has {size(length_bytes)} of {size(storage)}",
            _smaller_file(graph, length_bytes, storage),
        )
    low, _ = _memory(graph, runtime, profile)
    memory = profile.model_memory.value
    if low > memory:
        yield Finding(
            Obstacle.MEMORY,
            f"it needs at least {size(low)} of {size(memory)}, estimated",
            _less_memory(graph, profile),
        )


def _refused(graph: Graph, runtime: DeviceRuntime | None) -> Iterator[Finding]:
    if runtime is DeviceRuntime.TFLITE_MICRO:
        for reason in refusals(graph):
            yield Finding(
                Obstacle.OPERATORS,
                f"TensorFlow Lite Micro: {reason}",
                "quantize it to static int8, with a fixed shape",
            )
        return
    for name in graph.custom:
        yield Finding(
            Obstacle.OPERATORS,
            f"{name} is a custom operator, which no runtime has by itself",
            "replace it in the model",
        )
    for name in graph.external:
        yield Finding(
            Obstacle.OPERATORS, f"weights are in another file ({name[:60]!r})", "save the model as one file"
        )


def _memory(graph: Graph, runtime: DeviceRuntime | None, profile: HardwareProfile) -> tuple[int, int]:
    """What it takes of `model_memory`, from and to, in bytes."""
    if _is_micro(profile):
        if (
            graph.family is not RuntimeFamily.TFLITE
        ):  # nothing there loads it: what its activations take says enough
            return peak_activation_bytes(graph), peak_activation_bytes(graph)
        space = arena(graph, kernels_of(profile.architecture))
        return space.low_bytes, space.high_bytes
    base = RUNTIME_BYTES.get(runtime, 0) if runtime is not None else 0
    own = weight_bytes(graph) + peak_activation_bytes(graph)
    return base + own, int(base * RUNTIME_SPREAD) + COPIES * weight_bytes(graph) + 2 * peak_activation_bytes(
        graph
    )


def _smaller_file(graph: Graph, length_bytes: int, budget: float) -> str:
    least, words = length_bytes, []
    if can_be_integer(graph):
        least = int8_file_bytes(graph, length_bytes)
        words.append(f"static int8 would be about {size(least)} of {size(budget)}")
    if least > budget:
        fixed = max(0, length_bytes - weight_bytes(graph))
        words.append(_pruned((budget - fixed) / max(1, least - fixed), "parameters"))
    return "; ".join(words)


def _less_memory(graph: Graph, profile: HardwareProfile) -> str:
    budget = profile.model_memory.value
    least, words = graph, []
    if can_be_integer(graph):
        least = as_integers(graph)
        low, high = _memory(least, None, profile)
        words.append(
            f"static int8 would need {size(low)} to {size(high)}"
            if _is_micro(profile)
            else f"static int8 would need {size(low)} less its runtime"
        )
    low, _ = _memory(least, None, profile)
    if low > budget:
        words.append(_pruned(budget / low, "channels, or a smaller input"))
    return "; ".join(words) or "a runtime that takes less, or hardware with more memory"


def _pruned(share: float, of: str) -> str:
    if share <= 0.01:
        return "no pruning makes it that small: train a smaller network"
    return f"it needs pruning to {share:.0%} of its {of}"


def _other(family: RuntimeFamily) -> RuntimeFamily:
    return RuntimeFamily.TFLITE if family is RuntimeFamily.ONNX else RuntimeFamily.ONNX


def _is_micro(profile: HardwareProfile) -> bool:
    return DeviceRuntime.TFLITE_MICRO in profile.runtimes
