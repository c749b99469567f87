"""Runs a candidate on its runtime in a child process and turns what happened into figures.

Decides the limits of such a run and that a candidate which crashes its runtime is a failed candidate, not a failed
conversion. Whether figures are good enough is `select.py`'s business.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from edgeml.errors import BackendError, BudgetError
from edgeml.ids import digest_of
from edgeml.manifest import RuntimeFamily
from edgeml.probe import ProbeLimits, ProbeResult, probe

from .candidate import Candidate, Failed, Measured, Recipe
from .metrics import Judge
from .sources.torch_model import Array

LIMITS: Final = ProbeLimits(timeout_s=300.0, threads=1, memory_bytes=8 << 30)


@dataclass(frozen=True, slots=True)
class Verified:
    """A candidate with its file and what its runtime said; `result` is None if it did not run."""

    candidate: Candidate
    model: bytes
    result: ProbeResult | None


def verify(recipe: Recipe, model: bytes, samples: Array, judge: Judge) -> Verified:
    """Run a candidate on all evaluation samples."""
    try:
        result = probe(model, RuntimeFamily.ONNX, [samples], limits=LIMITS)
    except (BackendError, BudgetError) as error:
        return _failed(recipe, model, error.message)
    answers = result.answers[0]
    if not np.isfinite(answers).all():
        return _failed(recipe, model, "answers NaN or infinity")
    score = judge.score(answers)
    outcome = Measured(
        score.value, score.agreement, result.latency_p50_ms, result.latency_p95_ms, result.peak_memory_bytes
    )
    return Verified(Candidate(recipe, len(model), digest_of(model), outcome), model, result)


def not_made(recipe: Recipe, error: BackendError) -> Verified:
    """Record a candidate that could not be made."""
    return Verified(Candidate(recipe, 0, None, Failed(error.message)), b"", None)


def _failed(recipe: Recipe, model: bytes, reason: str) -> Verified:
    return Verified(Candidate(recipe, len(model), digest_of(model), Failed(reason)), model, None)
