"""Runs a model on its runtime in a child process, and says what it takes, answers and costs.

Decides what is measured and how, and what is believed of a child that may have been taken over by the model it ran.
Foreign models abort their runtime, so none is loaded in the caller's process. Nothing is unpickled: arrays travel as
.npy files in a temporary directory, the rest as JSON. How the child is confined is `edgeml.child`'s business; what the
figures mean for a profile, the caller's.
"""

from __future__ import annotations

import enum
import math
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from .child import ChildLimits, check_memory, module_command, one_line, run_child, status_bytes
from .errors import BackendError
from .lifeline import die_with_parent
from .machine_facts import read_facts
from .manifest import RuntimeFamily
from .profile import DeviceRuntime
from .runtime import KernelSet, Session, open_session
from .runtime.tflite_micro import TfliteMicroSession
from .tensors import BATCH, TensorSpec

Array = npt.NDArray[np.generic]

REPORT_BYTES_MAX: Final = 1 << 20
ANSWERS_BYTES_MAX: Final = 1 << 30
BATCH_SAMPLES: Final = 64
WARM_UP_RUNS: Final = 5
LATENCY_RUNS: Final = 500
LATENCY_RUNS_MIN: Final = 3
LATENCY_SPAN_S: Final = 1.0
_MODULE: Final = f"{__package__}.probe"
_MODEL: Final = "model.bin"
_REQUEST: Final = "request.json"
_REPORT: Final = "report.json"

ProbeLimits: TypeAlias = ChildLimits
"""What the child may take: time, threads, memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model runs: on which runtime, with which of its kernels, in which Python interpreter.

    A `runtime` that is named is used or the probe fails; with None it is whichever of the family is installed. `python`
    is another interpreter that has it (numpy and msgspec too); with None it is this one.
    """

    runtime: DeviceRuntime | None = None
    kernels: KernelSet = KernelSet.OPTIMIZED
    python: Path | None = None


HERE: Final = Place()


@dataclass(frozen=True, slots=True)
class Description:
    """What a model takes and gives, and the library and version that said so."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: str


class Timing(msgspec.Struct, frozen=True):
    """What else was timed: loading the model, its first request, `runs` more after the warm-up.

    `trend` is the median of the last quarter of these over that of the first: above one, the machine slowed down.
    """

    load_ms: float = 0.0
    first_call_ms: float = 0.0
    latency_p99_ms: float = 0.0
    trend: float = 1.0
    runs: int = 0


_UNTIMED: Final = Timing()


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a model answered and what it cost on the machine named in `host`.

    `answers[i]` is [samples, ...] of output i. Latency is of one request with one sample. `peak_memory_bytes` is the
    child's largest resident set while it served such requests: interpreter, numpy, runtime and model. `arena_used_bytes`
    is TensorFlow Lite Micro's count of its tensor arena, with the pointers of this machine; 0: the runtime has none.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    answers: tuple[Array, ...]
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_bytes: int
    runtime: str
    host: str
    timing: Timing = _UNTIMED
    arena_used_bytes: int = 0


class _Job(enum.Enum):
    DESCRIBE = "describe"
    MEASURE = "measure"


class _Request(msgspec.Struct, frozen=True):
    job: _Job
    family: RuntimeFamily
    threads: int
    timeout_s: float
    input_count: int
    runtime: DeviceRuntime | None
    kernels: KernelSet
    runs: int = 0


class _Report(msgspec.Struct, frozen=True):
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    runtime: str = ""
    latency_p50_ms: float = 0.0
    latency_p95_ms: float = 0.0
    peak_memory_bytes: int = 0
    timing: Timing = Timing()
    arena_used_bytes: int = 0
    refusal: str = ""
    hint: str = ""


def probe(
    model: bytes,
    family: RuntimeFamily,
    inputs: Sequence[Array],
    *,
    limits: ProbeLimits | None = None,
    place: Place = HERE,
    runs: int = 0,
) -> ProbeResult:
    """Run a model on samples in a child process.

    Args:
        model: the model file's bytes.
        family: which runtime loads it.
        inputs: per input of the model, [samples, ...] in its dtype; at least one sample.
        limits: what the child may take.
        place: the runtime, kernels and interpreter.
        runs: how many requests are timed; 0: as many as fit into LATENCY_SPAN_S, at most LATENCY_RUNS.

    Raises:
        BackendError: The runtime refuses the model or the samples, or is not there, or is not the one asked for; or the
            child died, hung or wrote garbage.
        BudgetError: The child took more than `limits.memory_bytes`.
    """
    limits = limits or ProbeLimits()
    if not inputs or not len(inputs[0]) or len({len(array) for array in inputs}) != 1:
        raise ValueError("the inputs must have the same number of samples, at least one")
    with tempfile.TemporaryDirectory(prefix="edgeml-probe-") as name:
        folder = Path(name)
        for index, array in enumerate(inputs):
            np.save(folder / f"input_{index}.npy", np.ascontiguousarray(array), allow_pickle=False)
        request = msgspec.structs.replace(
            _request(_Job.MEASURE, family, limits, len(inputs), place), runs=runs
        )
        report = _in_child(folder, model, request, limits, place.python)
        answers = tuple(
            _read_answer(folder / f"output_{index}.npy", len(inputs[0]))
            for index in range(len(report.outputs))
        )
    return ProbeResult(
        report.inputs, report.outputs, answers, report.latency_p50_ms, report.latency_p95_ms,
        report.peak_memory_bytes, report.runtime, host(), report.timing, report.arena_used_bytes,
    )  # fmt: skip


def describe(
    model: bytes, family: RuntimeFamily, *, limits: ProbeLimits | None = None, place: Place = HERE
) -> Description:
    """Say what a model takes and gives, without running it, in a child process.

    Raises:
        BackendError: The runtime refuses the model, or the child died, hung or wrote garbage.
        BudgetError: The child took more than `limits.memory_bytes`.
    """
    limits = limits or ProbeLimits()
    with tempfile.TemporaryDirectory(prefix="edgeml-probe-") as name:
        request = _request(_Job.DESCRIBE, family, limits, 0, place)
        report = _in_child(Path(name), model, request, limits, place.python)
    return Description(report.inputs, report.outputs, report.runtime)


def host() -> str:
    """Name the kind of this machine: architecture, processor, cores. Nothing that identifies it."""
    facts = read_facts()
    return " ".join(part for part in (facts.machine, facts.processor, f"({os.cpu_count()} cores)") if part)


def _in_child(
    folder: Path, model: bytes, request: _Request, limits: ProbeLimits, python: Path | None
) -> _Report:
    (folder / _MODEL).write_bytes(model)
    (folder / _REQUEST).write_bytes(msgspec.json.encode(request))
    run_child([*module_command(_MODULE, folder, python), str(folder), str(os.getpid())], folder, limits)
    report = _read_report(folder / _REPORT)
    if report.refusal:
        raise BackendError(one_line(report.refusal), hint=one_line(report.hint))
    if request.runtime is not None and report.runtime.partition(" ")[0] != request.runtime.value:
        raise _garbage()
    check_memory(report.peak_memory_bytes, limits)
    return report


def _request(
    job: _Job, family: RuntimeFamily, limits: ProbeLimits, input_count: int, place: Place
) -> _Request:
    return _Request(job, family, limits.threads, limits.timeout_s, input_count, place.runtime, place.kernels)


def _read_report(path: Path) -> _Report:
    try:
        with path.open("rb") as file:
            report = msgspec.json.decode(file.read(REPORT_BYTES_MAX), type=_Report)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _garbage() from error
    figures = (
        report.latency_p50_ms, report.latency_p95_ms, report.peak_memory_bytes, report.arena_used_bytes,
        *msgspec.structs.astuple(report.timing),
    )  # fmt: skip
    if not report.refusal and not (
        report.inputs and report.outputs and all(math.isfinite(one) and one >= 0 for one in figures)
    ):
        raise _garbage()
    return report


def _read_answer(path: Path, samples: int) -> Array:
    try:
        if path.is_symlink() or path.stat().st_size > ANSWERS_BYTES_MAX:
            raise _garbage()
        # Mapped first: a header that promises more than the file holds is refused before anything is allocated.
        answer: Array = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError, OverflowError, SyntaxError) as error:
        raise _garbage() from error
    if not answer.ndim or len(answer) != samples:
        raise BackendError(
            f"the model gave answers of shape {answer.shape} for {samples} samples",
            hint="its first output dimension must be the batch",
        )
    return answer


def _garbage() -> BackendError:
    return BackendError(
        "the process that ran the model left no readable result",
        hint="the model may have corrupted its runtime; export it again",
    )


def _peak_memory_bytes() -> int:
    # VmHWM begins anew at exec. ru_maxrss does not: it would show the size of the process that started us.
    peak = status_bytes("self", "VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if peak is None else peak


def _serve(folder: Path) -> None:
    """Be the child: load the model, run the job, write the report."""
    request = msgspec.json.decode((folder / _REQUEST).read_bytes(), type=_Request)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (ANSWERS_BYTES_MAX, ANSWERS_BYTES_MAX))
    signal.alarm(math.ceil(request.timeout_s) + 5)  # should the parent be killed, nobody else ends us
    begun = time.perf_counter()
    try:
        session = open_session(
            (folder / _MODEL).read_bytes(), request.family, request.threads, request.runtime, request.kernels
        )
        load_ms = (time.perf_counter() - begun) * 1000
        if request.job is _Job.DESCRIBE:
            report = _Report(
                session.inputs, session.outputs, session.runtime, peak_memory_bytes=_peak_memory_bytes()
            )
        else:
            # Mapped, so that samples that were not fed yet do not count as the model's memory.
            samples = [
                np.load(folder / f"input_{i}.npy", mmap_mode="r", allow_pickle=False)
                for i in range(request.input_count)
            ]
            report = _measure(session, samples, folder, request.runs)
            timing = msgspec.structs.replace(report.timing, load_ms=load_ms)
            report = msgspec.structs.replace(report, timing=timing)
    except BackendError as error:
        report = _Report(refusal=error.message, hint=error.hint)
    (folder / _REPORT).write_bytes(msgspec.json.encode(report))


def _measure(session: Session, samples: Sequence[Array], folder: Path, runs: int) -> _Report:
    _check_samples(session.inputs, samples)
    first_ms, latencies = _latencies_ms(session, samples, runs)
    peak = _peak_memory_bytes()  # before batches of many samples, which no device feeds
    step = BATCH_SAMPLES if all(spec.shape[0] == BATCH for spec in session.inputs) else 1
    count = len(samples[0])
    pieces = [
        session.run([np.array(array[i : i + step]) for array in samples]) for i in range(0, count, step)
    ]
    for index in range(len(session.outputs)):
        parts = [np.asarray(piece[index]) for piece in pieces]
        if any(not part.ndim for part in parts):
            raise BackendError(
                "an output of the model has no batch dimension",
                hint="keep the batch dimension in every output",
            )
        np.save(folder / f"output_{index}.npy", np.concatenate(parts), allow_pickle=False)
    p50, p95, p99 = map(float, np.percentile(latencies, [50, 95, 99]))
    quarter = max(1, len(latencies) // 4)
    trend = float(np.median(latencies[-quarter:]) / np.median(latencies[:quarter]))
    timing = Timing(first_call_ms=first_ms, latency_p99_ms=p99, trend=trend, runs=len(latencies))
    arena = session.arena_used_bytes if isinstance(session, TfliteMicroSession) else 0
    return _Report(session.inputs, session.outputs, session.runtime, p50, p95, peak, timing, arena)


def _check_samples(specs: Sequence[TensorSpec], samples: Sequence[Array]) -> None:
    if len(specs) != len(samples):
        raise BackendError(
            f"the model takes {len(specs)} inputs, {len(samples)} were given", hint="give one array per input"
        )
    for spec, array in zip(specs, samples, strict=True):
        if not spec.shape or spec.shape[0] not in {BATCH, 1}:
            raise BackendError(
                f"input {spec.name} has shape {list(spec.shape)}: its first dimension is no batch of one or free",
                hint="export the model with a free batch dimension, or with a batch of 1",
            )
        fits = len(array.shape) == len(spec.shape) and all(
            want in {BATCH, got} for want, got in zip(spec.shape[1:], array.shape[1:], strict=True)
        )
        if not fits or array.dtype.name != spec.dtype.value:
            raise BackendError(
                f"input {spec.name} takes {spec.dtype.value} samples of shape {list(spec.sample_shape)}, "
                f"was given {array.dtype.name} of shape {list(array.shape[1:])}",
                hint="give samples exactly as the model takes them",
            )


def _latencies_ms(session: Session, samples: Sequence[Array], runs: int) -> tuple[float, list[float]]:
    """Time requests with one sample: the first, and after the warm-up `runs` of them, or for about LATENCY_SPAN_S."""
    ring = [[np.array(array[i : i + 1]) for array in samples] for i in range(min(16, len(samples[0])))]
    begun = time.perf_counter()
    first_ms = _run_ms(session, ring[0])
    for run in range(1, WARM_UP_RUNS):
        if time.perf_counter() - begun > LATENCY_SPAN_S:
            break
        session.run(ring[run % len(ring)])
    taken: list[float] = []
    least, most = (runs, runs) if runs else (LATENCY_RUNS_MIN, LATENCY_RUNS)
    end = time.perf_counter() + LATENCY_SPAN_S
    while len(taken) < most and (len(taken) < least or time.perf_counter() < end):
        taken.append(_run_ms(session, ring[len(taken) % len(ring)]))
    return first_ms, taken


def _run_ms(session: Session, request: list[Array]) -> float:
    before = time.perf_counter_ns()
    session.run(request)
    return (time.perf_counter_ns() - before) / 1e6


if __name__ == "__main__":
    # Without the one that asked for it, a measurement is worth nothing; a model that hangs would run for ever.
    die_with_parent(int(sys.argv[2]), signal.SIGKILL)
    _serve(Path(sys.argv[1]))
