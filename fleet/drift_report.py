"""Reports drift: model by model on each device, what it sees against what it was made for.

Decides which windows count (those of the model's newest release there, under one known monitor, with counts that fit it) and
what a row says. Evidence, effect and verdict are `edgeml.drift`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgeml.drift import ColumnDrift, DeviceDrift, DriftTest, Verdict, verdicts
from edgeml.ids import DeviceId, Digest, ModelName, ReleaseId
from edgeml.monitor import Monitor
from edgeml.sketch import Sketch
from edgeml.telemetry import NO_VIOLATIONS, InputQuality, Window

COLUMNS_MAX: Final = 5
"""How many columns a row names, strongest evidence first."""


@dataclass(frozen=True, slots=True)
class DriftRow:
    """One model on one device."""

    device: DeviceId
    model: ModelName | None
    """None if the device sent no windows."""
    release: ReleaseId | None
    """The newest one it sent windows of; None if it sent none."""
    verdict: Verdict
    log_e: float
    effect: float
    """Largest population stability index of a column, corrected."""
    rows: int
    """Inferences looked at."""
    columns: tuple[ColumnDrift, ...]
    inputs: InputQuality = NO_VIOLATIONS
    """What was wrong with inputs of that release in the windows looked at."""


WindowsByModel = Mapping[DeviceId, Mapping[ModelName, Sequence[Window]]]


def report(monitors: Mapping[Digest, Monitor], windows: WindowsByModel) -> tuple[DriftRow, ...]:
    """Judge a fleet.

    Args:
        monitors: by their digests (`edgeml.monitor.digest`).
        windows: per device and model, oldest first.

    Returns:
        One row a device and model, and one of a device without any; the worst first. UNKNOWN without windows, without a known monitor, or with too few rows.
    """
    tests: dict[Digest, DriftTest] = {}
    drifts: dict[str, DeviceDrift] = {}
    blank: list[DriftRow] = []
    for row, all_windows in _rows(windows):
        blank.append(row)
        sketches = [
            one.sketch for one in all_windows if one.sketch is not None and one.release == row.release
        ]
        monitor = monitors.get(sketches[-1].monitor) if sketches else None
        if monitor is None:
            continue
        digest = sketches[-1].monitor
        if digest not in tests:
            tests[digest] = DriftTest(monitor)
        drifts[_name(row)] = tests[digest].assess(
            [one for one in sketches if one.monitor == digest and _fits(one, monitor)]
        )
    judged = verdicts(drifts)
    rows = [_filled(row, drifts.get(_name(row)), judged.get(_name(row))) for row in blank]
    return tuple(
        sorted(rows, key=lambda one: (_SEVERITY.index(one.verdict), -one.log_e, one.device, one.model or ""))
    )


_SEVERITY: Final = (Verdict.PAGE, Verdict.WARN, Verdict.OK, Verdict.UNKNOWN)


def _fits(sketch: Sketch, monitor: Monitor) -> bool:
    """Tell whether a device's counts are counts of this monitor: they come from outside, and one lie would end the report."""
    columns = monitor.columns
    if not len(columns) == len(sketch.counts) == len(sketch.sums):
        return False
    return all(
        len(counts) == len(column.spacings) + 1 and min(counts) >= 0 and sum(counts) == sketch.rows
        for column, counts in zip(columns, sketch.counts, strict=True)
    )


def _summed(qualities: Iterable[InputQuality]) -> InputQuality:
    total = NO_VIOLATIONS
    for one in qualities:
        total = total.plus(one)
    return total


def _rows(windows: WindowsByModel) -> Iterator[tuple[DriftRow, Sequence[Window]]]:
    """Every row that is to be filled, with the windows it is about."""
    for device, models in windows.items():
        heard = {model: sent for model, sent in models.items() if sent}
        for model, sent in heard.items():
            release = sent[-1].release
            inputs = _summed(one.quality for one in sent if one.release == release)
            yield DriftRow(device, model, release, Verdict.UNKNOWN, 0.0, 0.0, 0, (), inputs), sent
        if not heard:
            yield DriftRow(device, None, None, Verdict.UNKNOWN, 0.0, 0.0, 0, ()), ()


def _name(row: DriftRow) -> str:
    return f"{row.device}/{row.model}"


def _filled(row: DriftRow, drift: DeviceDrift | None, verdict: Verdict | None) -> DriftRow:
    if drift is None or verdict is None:
        return row
    columns = drift.columns[:COLUMNS_MAX]
    return DriftRow(
        row.device,
        row.model,
        row.release,
        verdict,
        drift.log_e,
        drift.effect,
        drift.rows,
        columns,
        row.inputs,
    )
