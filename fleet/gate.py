"""Weighs what the field says about a release against the release it replaces.

Decides which counts are trials and which are bad, that a device counts once a slice however busy it is, that no single
device can convict a release, and how strong evidence must be. What follows from it is decided in `advance`; the
statistic is `edgeml.evidence`.

Sources: as `edgeml.evidence`; Ville's inequality for the threshold, Bonferroni over metrics.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml.evidence import RATE_RATIOS, Doubles, log_e_two_arms, log_mean_exp
from edgeml.telemetry import Counters

from .rollout import Metric, MetricEvidence, Plan, Trial

Indices = npt.NDArray[np.intp]
Flags = npt.NDArray[np.bool_]

_COUNTERS: Final = Counters.__struct_fields__


def weigh(trials: Sequence[Trial]) -> tuple[MetricEvidence, ...]:
    """Weigh every metric, in the order of `Metric`.

    The unit is a device in a slice and an arm. It weighs bad events by its rate in that slice, at most 1. The second
    arm's share of a slice is its share of the units there. `log_e` is the least over leaving out each candidate device
    in turn: what one device says alone is no evidence, hence 0 with a single candidate device.
    """
    units = _units(trials)
    return tuple(_metric_evidence(metric, units) for metric in Metric)


def stops(evidence: Sequence[MetricEvidence], plan: Plan) -> MetricEvidence | None:
    """Return the metric with the strongest evidence, if that is enough to stop.

    The threshold is `plan.evidence_stop` times the metrics that have trials in both arms, so that all of them together
    stop at most one in `evidence_stop` harmless rollouts, however often one looks.
    """
    compared = [one for one in evidence if one.candidate_trials and one.incumbent_trials]
    if not compared:
        return None
    strongest = max(compared, key=lambda one: one.log_e)
    return strongest if strongest.log_e >= math.log(plan.evidence_stop * len(compared)) else None


@dataclass(frozen=True, slots=True)
class _Units:
    """Counts per unit: a device in a slice and an arm."""

    device: Indices
    slice: Indices
    candidate: Flags
    counts: Doubles
    """[units, counters]; not integers, which a hostile count could overflow."""

    def select(self, chosen: Flags) -> _Units:
        return _Units(self.device[chosen], self.slice[chosen], self.candidate[chosen], self.counts[chosen])


def _units(trials: Sequence[Trial]) -> _Units:
    """Add up trials of the same device, slice and arm."""
    size = len(trials)
    devices = list(map(operator.attrgetter("device"), trials))
    index = {device: position for position, device in enumerate(dict.fromkeys(devices))}
    device = np.fromiter(map(index.__getitem__, devices), np.intp, size)
    times, slices = np.unique(
        np.fromiter(map(operator.attrgetter("slice"), trials), np.int64, size), return_inverse=True
    )
    arm = np.fromiter(map(operator.attrgetter("candidate"), trials), np.intp, size)
    flat = itertools.chain.from_iterable(
        map(msgspec.structs.astuple, map(operator.attrgetter("counters"), trials))
    )
    counts = np.fromiter(flat, np.float64, size * len(_COUNTERS)).reshape(size, len(_COUNTERS))
    units = _Units(device, slices.astype(np.intp), arm.astype(bool), counts)
    key = (arm * len(times) + slices) * len(index) + device
    if (np.diff(np.sort(key)) > 0).all():
        return units
    keys, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    summed = np.stack([_added(inverse, column, len(keys)) for column in counts.T], 1)
    return _Units(device[first], units.slice[first], units.candidate[first], summed)


def _metric_evidence(metric: Metric, every: _Units) -> MetricEvidence:
    column = {name: every.counts[:, position] for position, name in enumerate(_COUNTERS)}
    match metric:
        case Metric.WRONG:
            trials, bad = column["labelled"], column["wrong"]
        case Metric.LOW_CONFIDENCE:
            trials, bad = column["inferences"], column["low_confidence"]
        case Metric.ERRORS:
            trials, bad = column["inferences"] + column["errors"], column["errors"]
        case Metric.SLOW:
            trials, bad = column["inferences"], column["slow"]
    # Counts come from devices: bad ones are at most all, and none is negative.
    trials = np.maximum(trials, 0.0)
    bad = np.clip(bad, 0.0, trials)
    candidate = every.candidate
    candidate_trials, incumbent_trials = int(trials[candidate].sum()), int(trials[~candidate].sum())
    log_e = 0.0
    if candidate_trials and incumbent_trials:
        tried = trials > 0
        units = every if tried.all() else every.select(tried)
        log_e = _log_e(units, bad[tried] / trials[tried])
    return MetricEvidence(
        metric=metric,
        log_e=log_e,
        candidate_rate=float(bad[candidate].sum() / candidate_trials) if candidate_trials else 0.0,
        incumbent_rate=float(bad[~candidate].sum() / incumbent_trials) if incumbent_trials else 0.0,
        candidate_trials=candidate_trials,
        incumbent_trials=incumbent_trials,
    )


def _log_e(units: _Units, weight: Doubles) -> float:
    """Evidence with the most incriminating candidate device left out.

    Args:
        units: those with trials; both arms have some.
        weight: [units], bad events of each.
    """
    arm, slices = units.candidate, int(units.slice.max()) + 1
    candidates = np.unique(units.device[arm])
    if len(candidates) < 2:
        return 0.0
    one = np.ones_like(weight)
    first, count_first = (_added(units.slice[~arm], values[~arm], slices) for values in (weight, one))
    second, count_second = (_added(units.slice[arm], values[arm], slices) for values in (weight, one))

    # Without device d only d's slices change, so every sum without one device is the whole sum and d's own corrections.
    share, share_less = _share(count_first, count_second), _share(count_first, count_second - 1)
    at, without, device = units.slice[arm], weight[arm], units.device[arm]
    logs = []
    for ratio in RATE_RATIOS:
        whole = _log_ratio(first, second, share, ratio)
        correction = _log_ratio(first[at], second[at] - without, share_less[at], ratio) - whole[at]
        logs.append(whole.sum() + _added(device, correction, int(candidates[-1]) + 1)[candidates])
    suspect = candidates[int(np.argmin(log_mean_exp(np.stack(logs), 0)))]
    left = arm & (units.device == suspect)
    second = second - _added(units.slice[left], weight[left], slices)
    count_second = count_second - _added(units.slice[left], one[left], slices)
    return log_e_two_arms(first, np.maximum(second, 0.0), _share(count_first, count_second))


def _added(index: Indices, values: Doubles, size: int) -> Doubles:
    """Sum of the values at each index."""
    return np.bincount(index, values, size).astype(np.float64, copy=False)


def _share(first: Doubles, second: Doubles) -> Doubles:
    """Second arm's share of units; 0 where there are none."""
    result: Doubles = second / np.maximum(first + second, 1.0)
    return result


def _log_ratio(first: Doubles, second: Doubles, share: Doubles, ratio: float) -> Doubles:
    """Log likelihood ratio of each slice for one rate ratio, as `log_e_two_arms` adds them up; 0 without both arms."""
    informative = (share > 0) & (share < 1)
    result: Doubles = np.where(
        informative, second * math.log(ratio) - (first + second) * np.log1p(share * (ratio - 1)), 0.0
    )
    return result
