"""Reports drift: device by device, what it sees against what its model was made for.

Decides which windows count (those of the device's newest release, under one known monitor, with counts that fit it) and
what a row says. Evidence, effect and verdict are `edgeml.drift`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgeml.drift import ColumnDrift, DeviceDrift, DriftTest, Verdict, verdicts
from edgeml.ids import DeviceId, Digest, ReleaseId
from edgeml.monitor import Monitor
from edgeml.sketch import Sketch
from edgeml.telemetry import Window

COLUMNS_MAX: Final = 5
"""How many columns a row names, strongest evidence first."""


@dataclass(frozen=True, slots=True)
class DriftRow:
    """One device."""

    device: DeviceId
    release: ReleaseId | None
    """The newest one it sent windows of; None if it sent none."""
    verdict: Verdict
    log_e: float
    effect: float
    """Largest population stability index of a column, corrected."""
    rows: int
    """Inferences looked at."""
    columns: tuple[ColumnDrift, ...]


def report(
    monitors: Mapping[Digest, Monitor], windows: Mapping[DeviceId, Sequence[Window]]
) -> tuple[DriftRow, ...]:
    """Judge a fleet.

    Args:
        monitors: by their digests (`edgeml.monitor.digest`).
        windows: per device, oldest first.

    Returns:
        One row a device, the worst first. UNKNOWN without windows, without a known monitor, or with too few rows.
    """
    tests: dict[Digest, DriftTest] = {}
    drifts: dict[str, DeviceDrift] = {}
    releases: dict[DeviceId, ReleaseId | None] = {}
    for device, all_windows in windows.items():
        releases[device] = all_windows[-1].release if all_windows else None
        sketches = [
            one.sketch for one in all_windows if one.sketch is not None and one.release == releases[device]
        ]
        monitor = monitors.get(sketches[-1].monitor) if sketches else None
        if monitor is None:
            continue
        digest = sketches[-1].monitor
        if digest not in tests:
            tests[digest] = DriftTest(monitor)
        drifts[device] = tests[digest].assess(
            [one for one in sketches if one.monitor == digest and _fits(one, monitor)]
        )
    judged = verdicts(drifts)
    rows = [
        _row(device, release, drifts.get(device), judged.get(device)) for device, release in releases.items()
    ]
    return tuple(sorted(rows, key=lambda one: (_SEVERITY.index(one.verdict), -one.log_e, one.device)))


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


def _row(
    device: DeviceId, release: ReleaseId | None, drift: DeviceDrift | None, verdict: Verdict | None
) -> DriftRow:
    if drift is None or verdict is None:
        return DriftRow(device, release, Verdict.UNKNOWN, 0.0, 0.0, 0, ())
    return DriftRow(
        device, release, verdict, drift.log_e, drift.effect, drift.rows, drift.columns[:COLUMNS_MAX]
    )
