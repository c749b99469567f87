"""How a profile sees a candidate: on which runtimes it was run for it, how fast it would be, what memory it would take.

Decides where each figure comes from. A latency that was measured on this host counts for a profile only if the profile is
this host; elsewhere it is what `edgeml measure` measured of the same file on such a device, or else an estimate, of which the
profile's numbers are the source. On Linux, memory is that of the
process that was measured here (of several runtimes, the most), for interpreter, runtime and model weigh about the same on every Linux; on a
microcontroller it is the upper end of the arena's range.
"""

from __future__ import annotations

from edgeml.errors import BackendError
from edgeml.manifest import RuntimeFamily
from edgeml.measurement import MeasurementRecord
from edgeml.profile import HOST, DeviceRuntime, HardwareProfile

from .candidate import Basis, Candidate, Failed, Figure, Measured, Placement, Run
from .estimate.arena import arena, kernels_of
from .estimate.graph import Graph
from .estimate.onnx_graph import read_onnx
from .estimate.roofline import can_estimate, estimate
from .estimate.tflite_graph import read_tflite
from .known_wrong import refusal
from .recipe import Recipe
from .steps.c_source import refusals
from .verify import Verified


def graph_of(verified: Verified) -> Graph | None:
    """Look into a candidate's file; None where there is none, or it cannot be read."""
    if not verified.model:
        return None
    try:
        match verified.candidate.recipe.family:
            case RuntimeFamily.ONNX:
                return read_onnx(verified.model)
            case RuntimeFamily.TFLITE:
                return read_tflite(verified.model)
            case RuntimeFamily.TORCHSCRIPT:
                return None  # It is code; what it computes is measured.
    except BackendError:
        return None


def place(
    candidate: Candidate,
    graph: Graph | None,
    profile: HardwareProfile,
    record: MeasurementRecord | None = None,
    turns_ms: float | None = None,
) -> Placement:
    """Say how a profile sees a candidate.

    Args:
        candidate: what was made and run.
        graph: what its file computes; None where nobody can say.
        profile: who sees it.
        record: of its file, from a device of the profile.
        turns_ms: its latency on this host, measured in turns with others.
    """
    runs = tuple(run for run in candidate.runs if run.runtime in profile.runtimes)
    known = next((said for run in runs if (said := _known(candidate.recipe, run.runtime, profile))), "")
    known = known or _micro_refuses(graph, profile)
    if record is not None and _measured(runs):
        latency = Figure(record.latency_p50_ms, Basis.DEVICE)
        return Placement(candidate, runs, latency, Figure(record.peak_memory_bytes, Basis.DEVICE), known)
    latency_ms = _latency(runs, graph, profile)
    if turns_ms is not None and latency_ms is not None and latency_ms.basis is Basis.HOST:
        latency_ms = Figure(turns_ms, Basis.TURNS)
    return Placement(candidate, runs, latency_ms, _memory(runs, graph, profile), known)


def _known(recipe: Recipe, runtime: DeviceRuntime, profile: HardwareProfile) -> str:
    return refusal(recipe, runtime, profile.onnxruntime if runtime is DeviceRuntime.ONNXRUNTIME else "")


def _micro_refuses(graph: Graph | None, profile: HardwareProfile) -> str:
    """Say what TensorFlow Lite Micro has against a file that ran on kernels which stand in for it."""
    if profile.runtimes != (DeviceRuntime.TFLITE_MICRO,) or graph is None:
        return ""
    refused = refusals(graph)
    return f"TensorFlow Lite Micro does not take it: {refused[0]}" if refused else ""


def _latency(runs: tuple[Run, ...], graph: Graph | None, profile: HardwareProfile) -> Figure | None:
    slowest_ms = max((one.latency_p50_ms for one in _measured(runs)), default=None)
    if slowest_ms is None:
        return None
    if profile.name == HOST:
        return Figure(slowest_ms, Basis.HOST)
    if graph is None or not can_estimate(profile, graph.family):
        return None
    return Figure(estimate(graph, profile).latency_ms, Basis.ESTIMATED)


def _memory(runs: tuple[Run, ...], graph: Graph | None, profile: HardwareProfile) -> Figure | None:
    if profile.runtimes == (DeviceRuntime.TFLITE_MICRO,):
        if graph is None or graph.family is not RuntimeFamily.TFLITE:
            return None
        return Figure(arena(graph, kernels_of(profile.architecture)).high_bytes, Basis.ESTIMATED)
    # The slowest runtime need not be the one that takes most.
    most = max((one.peak_memory_bytes for one in _measured(runs)), default=None)
    return None if most is None else Figure(most, Basis.HOST)


def _measured(runs: tuple[Run, ...]) -> tuple[Measured, ...]:
    """What was measured on each runtime; nothing where one failed."""
    if any(isinstance(run.outcome, Failed) for run in runs):
        return ()
    return tuple(run.outcome for run in runs if isinstance(run.outcome, Measured))
