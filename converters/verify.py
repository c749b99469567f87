"""Runs a candidate on every runtime that it is for, each in a child process, and turns what happened into figures.

Decides the limits of such a run, and that a candidate which crashes its runtime
is a failed candidate, not a failed conversion. Whether figures are good enough is `select.py`'s business.
"""

from __future__ import annotations

import io
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from edgeml.errors import BackendError, BudgetError
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.probe import Place, ProbeLimits, ProbeResult, describe, host, probe
from edgeml.profile import DeviceRuntime
from edgeml.tensors import TensorSpec

from .candidate import Candidate, Failed, Measured, Run
from .feed import feed, real
from .metrics import Judge
from .recipe import Recipe
from .sources.torch_model import Array
from .store import Store, key_of

LIMITS: Final = ProbeLimits(timeout_s=300.0, threads=1, memory_bytes=8 << 30)
FORM: Final = 2
"""Changed when candidates are fed or asked in another way, so that nothing older is taken for it."""


@dataclass(frozen=True, slots=True)
class Venue:
    """A runtime that candidates are judged on, and where it is to be had here."""

    runtime: DeviceRuntime
    place: Place
    version: str = ""
    """Of the library there, by which kept results are told from those of another one."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A candidate with its file and what each runtime said, in the order of the candidate's runs; None if it did not run."""

    candidate: Candidate
    model: bytes
    results: tuple[ProbeResult | None, ...]

    @property
    def result(self) -> ProbeResult | None:
        """What the first runtime said that ran it."""
        return next((one for one in self.results if one is not None), None)


@dataclass(frozen=True, slots=True)
class Verifier:
    """Runs candidates on all evaluation samples [samples, ...], as the source takes them."""

    samples: Array
    judge: Judge
    store: Store

    def verify(self, recipe: Recipe, model: bytes, venues: Sequence[Venue]) -> Verified:
        """Run a candidate on each of the venues."""
        runs: list[Run] = []
        results: list[ProbeResult | None] = []
        for venue in venues:
            run, result = self._run(recipe, model, venue)
            runs.append(run)
            results.append(result)
        candidate = Candidate(recipe, len(model), digest_of(model), tuple(runs))
        return Verified(candidate, model, tuple(results))

    def _run(self, recipe: Recipe, model: bytes, venue: Venue) -> tuple[Run, ProbeResult | None]:
        try:
            result = self._probed(recipe, model, venue)
        except (BackendError, BudgetError) as error:
            return Run(venue.runtime, "", Failed(error.message)), None
        version = said_of(venue, result)
        answers = real(result.answers[0], result.outputs[0])
        if not np.isfinite(answers).all():
            return Run(venue.runtime, version, Failed("answers NaN or infinity")), None
        if answers.size != self.judge.original.size:
            shape = list(answers.shape[1:])
            return Run(venue.runtime, version, Failed(f"answers with shape {shape}, not the source's")), None
        score = self.judge.score(answers.reshape(self.judge.original.shape))
        outcome = Measured(
            score.value,
            score.agreement,
            result.latency_p50_ms,
            result.latency_p95_ms,
            result.peak_memory_bytes,
        )
        return Run(venue.runtime, version, outcome), result

    def _probed(self, recipe: Recipe, model: bytes, venue: Venue) -> ProbeResult:
        place = venue.place
        where = f"{venue.version} {place.runtime} {place.kernels} {place.python}"
        key = key_of(
            "probe", FORM, digest_of(model), where, host(), digest_of(self.samples.tobytes()), recipe.export
        )
        kept = self.store.get(key)
        if kept is not None:
            return decode_result(kept)
        samples = self.samples
        if recipe.family is RuntimeFamily.TFLITE:
            spec = describe(model, recipe.family, limits=LIMITS, place=place).inputs[0]
            samples = feed(samples, spec, recipe.export.layout)
        result = probe(model, recipe.family, [samples], limits=LIMITS, place=place)
        self.store.put(key, encode_result(result))
        return result


def said_of(venue: Venue, result: ProbeResult) -> str:
    """Say what a candidate was run on; for a microcontroller, also how far that is from one."""
    if venue.runtime is not DeviceRuntime.TFLITE_MICRO:
        return result.runtime
    if venue.place.runtime is not DeviceRuntime.TFLITE_MICRO:
        return f"{result.runtime}, reference kernels (TensorFlow Lite Micro itself was not run)"
    machine, version = platform.machine().replace("_", "-"), result.runtime.partition(" ")[2]
    return (
        f"TensorFlow Lite Micro {version} on this {machine} host with its reference kernels, which is no microcontroller; "
        f"arena used here: {result.arena_used_bytes} bytes"
    )


def not_made(recipe: Recipe, reason: str) -> Verified:
    """Record a candidate that could not be made."""
    return Verified(Candidate(recipe, 0, None, (), reason), b"", ())


class _Record(msgspec.Struct, frozen=True):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_bytes: int
    runtime: str
    host: str
    arena_used_bytes: int = 0


def encode_result(result: ProbeResult) -> bytes:
    """Write what a runtime said; no pickles."""
    record = _Record(
        result.inputs, result.outputs, result.latency_p50_ms, result.latency_p95_ms, result.peak_memory_bytes,
        result.runtime, result.host, result.arena_used_bytes,
    )  # fmt: skip
    file = io.BytesIO()
    arrays = {f"answer_{index}": answer for index, answer in enumerate(result.answers)}
    np.savez(file, allow_pickle=False, record=np.frombuffer(msgspec.json.encode(record), np.uint8), **arrays)
    return file.getvalue()


def decode_result(data: bytes) -> ProbeResult:
    """Read what `encode_result` wrote."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        record = msgspec.json.decode(file["record"].tobytes(), type=_Record)
        answers = tuple(file[f"answer_{index}"] for index in range(len(record.outputs)))
    return ProbeResult(
        record.inputs, record.outputs, answers, record.latency_p50_ms, record.latency_p95_ms,
        record.peak_memory_bytes, record.runtime, record.host, arena_used_bytes=record.arena_used_bytes,
    )  # fmt: skip
