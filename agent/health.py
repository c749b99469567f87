"""Judges a variant on trial by what its worker measured and by what its users got.

Decides whether golden vectors, latency, crashes, and errors and slowness on real traffic allow a variant to be kept, and
says why not in one line. Pure: measuring is `worker`'s business, what follows from the verdict the update machine's;
memory is `admission`'s.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from edgeml.telemetry import Counters

CRASHES_MAX: Final = 0
"""A variant that crashed on trial is not kept."""
REQUESTS_MIN: Final = 20
"""With fewer requests on trial their errors and slowness say nothing."""
ERRORS_MAX: Final = 0.1
"""Share of the requests on trial that may get no answer."""
SLOW_MAX: Final = 0.5
"""Share of the answers on trial that may be slower than the model's monitor allows."""


class GoldenRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a loaded variant answered its golden vectors, and at what cost.

    `agreement` and `difference_fraction` as in `edgeml.golden`; `passed` is that file's verdict. `latency_p50_ms` is the
    median of single requests in the worker, `peak_memory_bytes` its highest resident memory since it was started.
    """

    agreement: float
    difference_fraction: float
    passed: bool
    latency_p50_ms: float
    peak_memory_bytes: int


class TrialLimits(msgspec.Struct, frozen=True):
    """What this device grants a variant; None grants anything."""

    latency_budget_ms: float | None = None


class TrialVerdict(msgspec.Struct, frozen=True):
    """Whether a variant may be kept; `reason` is one line."""

    healthy: bool
    reason: str


def judge(golden: GoldenRun, limits: TrialLimits, crashes: int) -> TrialVerdict:
    """Judge a variant on trial. The first thing that is wrong is the reason.

    >>> run = GoldenRun(1.0, 0.001, passed=True, latency_p50_ms=2.0, peak_memory_bytes=50 << 20)
    >>> judge(run, TrialLimits(), 0).healthy
    True
    >>> judge(run, TrialLimits(latency_budget_ms=1.5), 0).reason
    'median latency 2.00 ms is above the budget of 1.50 ms'
    """
    if crashes > CRASHES_MAX:
        return TrialVerdict(healthy=False, reason=f"the worker crashed {crashes} times on trial")
    if not golden.passed:
        return TrialVerdict(
            healthy=False,
            reason=f"golden vectors: agreement {golden.agreement:.3f}, difference {golden.difference_fraction:.4f} of the range",
        )
    budget_ms = limits.latency_budget_ms
    # A latency that is not a number cannot be below a budget.
    if budget_ms is not None and (math.isnan(golden.latency_p50_ms) or golden.latency_p50_ms > budget_ms):
        return TrialVerdict(
            healthy=False,
            reason=f"median latency {golden.latency_p50_ms:.2f} ms is above the budget of {budget_ms:.2f} ms",
        )
    return TrialVerdict(
        healthy=True,
        reason=f"agreement {golden.agreement:.3f}, median latency {golden.latency_p50_ms:.2f} ms",
    )


def judge_traffic(counters: Counters) -> TrialVerdict:
    """Judge a variant by what it was really asked on trial.

    >>> judge_traffic(Counters(inferences=3, errors=3)).healthy
    True
    >>> judge_traffic(Counters(inferences=80, errors=20)).reason
    '20 of 100 requests on trial got no answer'
    >>> judge_traffic(Counters(inferences=100, slow=60)).reason
    '60 of 100 answers on trial were slower than the model allows'
    """
    asked = counters.inferences + counters.errors
    if asked < REQUESTS_MIN:
        return TrialVerdict(healthy=True, reason=f"{asked} requests on trial, too few to judge")
    if counters.errors > ERRORS_MAX * asked:
        return TrialVerdict(
            healthy=False, reason=f"{counters.errors} of {asked} requests on trial got no answer"
        )
    if counters.slow > SLOW_MAX * counters.inferences:
        return TrialVerdict(
            healthy=False,
            reason=f"{counters.slow} of {counters.inferences} answers on trial were slower than the model allows",
        )
    return TrialVerdict(healthy=True, reason=f"{asked} requests on trial, {counters.errors} without answer")
