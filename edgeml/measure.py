"""Measures a bundle on the machine where this runs: a workstation, or a device that has only the agent's libraries.

Decides the order: the bundle's digests, then whether it answers as recorded, then what it costs; what answers wrongly is
not measured. The model runs in a child process (`probe`); the steps around it in this one, and they are not timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from . import __version__, bundle, golden
from .child import ChildLimits
from .errors import BackendError, ConfigError
from .ids import digest_of, digest_of_file
from .machine_facts import read_condition, read_facts, throttling
from .manifest import Manifest, RuntimeFamily
from .measurement import MeasurementRecord
from .pipeline import Pipeline
from .probe import HERE, Place, probe
from .profile import DeviceRuntime
from .tensors import BATCH

RUNS_MAX: Final = 1_000_000
THREADS_MAX: Final = 256
TIMEOUT_S: Final = 600.0
SAMPLES_BYTES_MAX: Final = 1 << 30
GOLDEN_NAME: Final = "golden vectors"

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Order:
    """What is measured and how. `runs` 0: for about a second. `samples`: a file to feed instead of the golden vectors."""

    bundle: Path
    threads: int = 1
    runs: int = 0
    samples: Path | None = None


def measure(order: Order) -> MeasurementRecord:
    """Verify a bundle, run its golden vectors, and measure it.

    Raises:
        ArtifactError: It is no bundle, or its content is not what its manifest states.
        BackendError: No runtime here loads it, it dies or hangs, or does not answer as recorded.
        ConfigError: The order or the samples cannot be meant.
    """
    if not (0 <= order.runs <= RUNS_MAX and 1 <= order.threads <= THREADS_MAX):
        raise ConfigError(
            f"{order.runs} runs on {order.threads} threads",
            hint=f"at most {RUNS_MAX} runs, on 1 to {THREADS_MAX} threads",
        )
    with bundle.Bundle(order.bundle) as opened:
        opened.verify()
        manifest, model = opened.manifest, opened.model()
        if not opened.has(bundle.GOLDEN):
            raise ConfigError(
                f"{order.bundle.name} has no golden vectors", hint="package it anew; edgeml records them"
            )
        recorded = golden.decode(opened.read(bundle.GOLDEN), manifest)
    limits = ChildLimits(timeout_s=TIMEOUT_S, threads=order.threads)
    pipeline = Pipeline(manifest)
    inputs = pipeline.prepare_samples(recorded.inputs)
    fed = inputs if order.samples is None else pipeline.prepare_samples(_samples(order.samples, manifest))
    place = Place(DeviceRuntime.TORCH) if manifest.runtime is RuntimeFamily.TORCHSCRIPT else HERE
    before = read_condition()
    result = probe(
        model, manifest.runtime, inputs, limits=limits, place=place, runs=order.runs if fed is inputs else 1
    )
    compared = golden.compare(recorded.outputs, pipeline.finish(inputs, list(result.answers)), manifest)
    if not compared.passed:
        raise BackendError(
            f"{order.bundle.name} does not answer here as recorded: {compared.describe()}",
            hint=_why_otherwise(result.runtime, manifest.measurement.runtime),
        )
    if fed is not inputs:
        before = read_condition()
        result = probe(model, manifest.runtime, fed, limits=limits, place=place, runs=order.runs)
    after = read_condition()
    facts = read_facts()
    return MeasurementRecord(
        release=manifest.release,
        variant=manifest.variant,
        bundle_sha256=digest_of_file(order.bundle),
        model_sha256=digest_of(model),
        model_bytes=len(model),
        family=manifest.runtime,
        runtime=result.runtime,
        threads=order.threads,
        host=result.host,
        machine=facts,
        samples=GOLDEN_NAME if order.samples is None else order.samples.name,
        runs=result.timing.runs,
        load_ms=result.timing.load_ms,
        first_call_ms=result.timing.first_call_ms,
        latency_p50_ms=result.latency_p50_ms,
        latency_p95_ms=result.latency_p95_ms,
        latency_p99_ms=result.timing.latency_p99_ms,
        trend=result.timing.trend,
        peak_memory_bytes=result.peak_memory_bytes,
        golden_agreement=compared.agreement,
        golden_difference=compared.difference_fraction,
        before=before,
        after=after,
        throttling=throttling(before, after, facts.clock_max_mhz, result.timing.trend),
        edgeml=__version__,
    )


def _why_otherwise(here: str, verified: str) -> str:
    if here != verified:
        return f"{here} is not the runtime it was verified on ({verified})?"
    return f"it was verified on {verified} as well: does this processor compute otherwise, or is something random in the model?"


def _samples(path: Path, manifest: Manifest) -> tuple[Array, ...]:
    """Read samples as callers give them: an .npz with an array for each input (of one, also evaluation_x), or an .npy."""
    specs = manifest.surface.inputs
    try:
        if path.stat().st_size > SAMPLES_BYTES_MAX:
            raise ConfigError(
                f"{path.name} is larger than {SAMPLES_BYTES_MAX} bytes", hint="give fewer samples"
            )
        # Mapped first: a header that promises more than the file holds is refused before anything is allocated.
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            arrays = [loaded] if len(specs) == 1 else []
        else:
            with loaded:
                names = [_name(loaded.files, spec.name, alone=len(specs) == 1) for spec in specs]
                arrays = [loaded[name] for name in names if name is not None]
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise ConfigError(
            f"cannot read samples {path}: {error}", hint="write them with numpy.savez"
        ) from error
    if len(arrays) != len(specs):
        raise ConfigError(
            f"{path.name} has no array for each input",
            hint=f"save {', '.join(spec.name for spec in specs)}, or evaluation_x where there is one input",
        )
    for array, spec in zip(arrays, specs, strict=True):
        fits = array.ndim == len(spec.shape) and all(
            want in {BATCH, have} for want, have in zip(spec.sample_shape, array.shape[1:], strict=True)
        )
        if not fits or array.dtype.name != spec.dtype.value or not len(array) or len(array) != len(arrays[0]):
            raise ConfigError(
                f"{spec.name} takes {spec.dtype.value} samples of shape {list(spec.sample_shape)}, "
                f"{path.name} has {array.dtype.name} of shape {list(array.shape[1:])}",
                hint=f"`edgeml check {path.name} --spec BUNDLE` says what to do",
            )
    return tuple(np.array(array) for array in arrays)


def _name(files: list[str], wanted: str, *, alone: bool) -> str | None:
    candidates = (wanted, "evaluation_x", "x", "calibration_x") if alone else (wanted,)
    return next((one for one in candidates if one in files), None)
