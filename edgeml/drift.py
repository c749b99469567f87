"""Tells whether what a device sees is still what the model was made for.

Decides how evidence over time becomes a verdict: Shiryaev-Roberts sums over look-backs (a change at an unknown time),
the mean over columns (valid under any dependence), e-BH over devices (false discovery rate), and an effect size
beside it, because with enough data any difference is significant. Pure: windows in, verdicts out.

Sources: Shin, Ramdas & Rinaldo, "E-detectors" (NEJSDS 2023); Wang & Ramdas, "False discovery rate control with
e-values" (JRSS B 2022); figures in docs/adr/0004-drift-statistic.md.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from .evidence import CountEvidence, Doubles
from .monitor import Monitor
from .sketch import STANDARD_SCALE, Sketch

LOOK_BACKS: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Windows that a change may be old."""
HORIZON_WINDOWS: Final = 720
"""Over how many windows the false discovery rate is promised (30 days of hours)."""
FALSE_DISCOVERY_RATE: Final = 0.05
EFFECT_MIN: Final = 0.05
"""Corrected population stability index below which a difference, however certain, is not worth a person's time."""
PAGE_EFFECT: Final = 0.25
ROWS_MIN: Final = 50
"""Inferences below which no effect size is computed."""


class Verdict(enum.Enum):
    """What a person should do."""

    OK = "ok"
    WARN = "warn"
    PAGE = "page"
    UNKNOWN = "unknown"
    """Too few inferences to say."""


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """One column of one device."""

    column: str
    log_e: float
    """Log of the Shiryaev-Roberts sum."""
    effect: float
    """Population stability index, corrected for sampling error."""
    mean_shift: float
    """Shift of the mean in reference standard deviations; 0 for categorical columns."""


@dataclass(frozen=True, slots=True)
class DeviceDrift:
    """One device under one monitor."""

    log_e: float
    """Log of the mean over columns."""
    rows: int
    columns: tuple[ColumnDrift, ...]
    """Strongest first."""

    @property
    def effect(self) -> float:
        """Largest effect of a column."""
        return max((column.effect for column in self.columns), default=0.0)


class DriftTest:
    """The drift statistic of one monitor, prepared once and used for many devices."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self._evidence = [
            CountEvidence(column.spacings, column.design_effect, ordered=not column.is_categorical)
            for column in monitor.columns
        ]

    def assess(self, windows: Sequence[Sketch]) -> DeviceDrift:
        """Judge one device from its windows, oldest first. Only the last LOOK_BACKS[-1] are used."""
        recent = [window for window in windows if window.rows][-LOOK_BACKS[-1] :]
        if not recent:
            return DeviceDrift(0.0, 0, ())
        columns = []
        logs = []
        for position, column in enumerate(self.monitor.columns):
            counts = np.array([window.counts[position] for window in recent], float)
            suffixes = np.cumsum(counts[::-1], axis=0)
            spans = [span for span in LOOK_BACKS if span <= len(recent)]
            log_e = float(
                np.logaddexp.reduce(self._evidence[position].log_e(suffixes[[span - 1 for span in spans]]))
            )
            logs.append(log_e)
            best = suffixes[-1]
            rows = int(best.sum())
            shift = (
                0.0
                if column.is_categorical
                else sum(window.sums[position] for window in recent) / STANDARD_SCALE / rows
            )
            columns.append(
                ColumnDrift(
                    column.name, log_e, corrected_psi(best, column.spacings, column.design_effect), shift
                )
            )
        columns.sort(key=lambda one: (-one.log_e, one.column))
        mean = float(np.logaddexp.reduce(logs) - np.log(len(logs)))
        return DeviceDrift(mean, sum(window.rows for window in recent), tuple(columns))


def corrected_psi(counts: Doubles, spacings: tuple[float, ...], design_effect: float) -> float:
    """Population stability index less its expectation when nothing changed; never negative.

    PSI alone grows with bins and shrinks with rows: (bins - 1)(1/n + 1/m) is what no drift at all gives.
    """
    reference = np.append(np.asarray(spacings, float), 0.0)
    live = np.asarray(counts, float)
    n, m, bins = live.sum(), reference.sum(), len(reference) - 1
    if n < ROWS_MIN:
        return 0.0
    p = (live + 0.5) / (n + 0.5 * len(live))
    q = (reference + 0.5) / (m + 0.5 * len(reference))
    raw = float(((p - q) * np.log(p / q)).sum())
    return max(0.0, raw - float((bins - 1) * design_effect * (1 / n + 1 / m)))


def e_benjamini_hochberg(log_e: npt.NDArray[np.float64], rate: float) -> npt.NDArray[np.bool_]:
    """Select hypotheses whose false discovery rate is at most `rate` under any dependence.

    The largest r such that the r-th greatest e-value is at least D / (rate * r).
    """
    order = np.argsort(-log_e)
    thresholds = np.log(len(log_e)) - np.log(rate) - np.log(np.arange(1, len(log_e) + 1))
    passing = np.flatnonzero(log_e[order] >= thresholds)
    selected = np.zeros(len(log_e), bool)
    if len(passing):
        selected[order[: passing[-1] + 1]] = True
    return selected


def verdicts(drifts: Mapping[str, DeviceDrift], horizon_windows: int = HORIZON_WINDOWS) -> dict[str, Verdict]:
    """Judge a fleet: certain enough over all devices, and large enough to matter."""
    if not drifts:
        return {}
    names = list(drifts)
    log_e = np.array([drifts[name].log_e for name in names]) - np.log(horizon_windows)
    flagged = e_benjamini_hochberg(log_e, FALSE_DISCOVERY_RATE)
    result = {}
    for name, is_flagged in zip(names, flagged, strict=True):
        drift = drifts[name]
        certain = [
            column
            for column in drift.columns
            if column.log_e - np.log(horizon_windows) > np.log(1 / FALSE_DISCOVERY_RATE)
        ]
        effect = max((column.effect for column in certain), default=0.0)
        if drift.rows < ROWS_MIN:
            result[name] = Verdict.UNKNOWN
        elif is_flagged and effect >= EFFECT_MIN:
            result[name] = Verdict.PAGE if effect >= PAGE_EFFECT else Verdict.WARN
        else:
            result[name] = Verdict.OK
    return result
