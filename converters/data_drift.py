"""Whether samples are still what a bundle's model was made for: its own monitor, counted once over all of them.

Decides how a data set is judged by the statistic that judges devices (`edgeml.drift`): as one window, looked at once,
its columns held to a false discovery rate together. Answers of the model are not looked at: nothing is run. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
import numpy as np

from edgeml.drift import (
    EFFECT_MIN,
    FALSE_DISCOVERY_RATE,
    PAGE_EFFECT,
    ROWS_MIN,
    ColumnDrift,
    DriftTest,
    Verdict,
    e_benjamini_hochberg,
)
from edgeml.manifest import Manifest
from edgeml.monitor import Monitor
from edgeml.observer import Observer
from edgeml.tensors import TensorSpec

from .array_file import Array
from .data_finding import Finding, Kind, Severity

COLUMNS_SHOWN = 5


class ColumnVerdict(msgspec.Struct, frozen=True):
    """How one column of samples compares with the bundle's reference.

    `log_e` is the evidence (log e-value), `effect` the corrected population stability index, `mean_shift` in standard
    deviations of the reference.
    """

    array: str
    column: str
    verdict: Verdict
    log_e: float
    effect: float
    mean_shift: float


def judge(
    array: str, samples: Array, spec: TensorSpec, monitor: Monitor, manifest: Manifest
) -> tuple[ColumnVerdict, ...]:
    """Judge the samples of one input, strongest evidence first; empty if the monitor does not watch it.

    Args:
        array: name of the array.
        samples: [samples, ...] as the monitor watches the input.
        spec: that input.
        monitor: the bundle's.
        manifest: the bundle's, as it is watched.
    """
    columns = tuple(column for column in monitor.columns if column.tensor == spec.name)
    if not columns or not len(samples):
        return ()
    mine = msgspec.structs.replace(monitor, columns=columns, confidence_low=None)
    observer = Observer(mine, msgspec.structs.replace(manifest, inputs=(spec,), outputs=(), processing=None))
    observer.observe([samples], [])
    drift = DriftTest(mine).assess([observer.take().sketch])
    flagged = e_benjamini_hochberg(np.array([one.log_e for one in drift.columns]), FALSE_DISCOVERY_RATE)
    return tuple(
        ColumnVerdict(
            array, one.column, _verdict(one, drift.rows, bool(certain)), one.log_e, one.effect, one.mean_shift
        )
        for one, certain in zip(drift.columns, flagged, strict=True)
    )


def check_drift(verdicts: Sequence[ColumnVerdict], rows: int) -> Iterator[Finding]:
    """Say which columns drifted; or, where there are too few samples to say, that."""
    if not verdicts:
        return
    array = verdicts[0].array
    if rows < ROWS_MIN:
        yield Finding(
            severity=Severity.NOTE, kind=Kind.DRIFT, array=array, count=rows, total=ROWS_MIN,
            what="samples are too few to tell drift", hint=f"give at least {ROWS_MIN}",
        )  # fmt: skip
        return
    drifted = [one for one in verdicts if one.verdict in {Verdict.WARN, Verdict.PAGE}]
    for one in drifted[:COLUMNS_SHOWN]:
        yield Finding(
            severity=Severity.VIOLATION if one.verdict is Verdict.PAGE else Severity.WARNING,
            kind=Kind.DRIFT, array=array, column=one.column,
            what=f"is not what the bundle's model was judged by: verdict {one.verdict.value}, evidence {one.log_e:.1f} "
            f"(log e-value), effect {one.effect:.2f} (PSI), mean shifted by {one.mean_shift:+.2f} standard deviations",
            hint="data of another place, season, sensor or scale? If they are right, the model has to be made anew",
        )  # fmt: skip
    if len(drifted) > COLUMNS_SHOWN:
        yield Finding(
            severity=Severity.WARNING, kind=Kind.DRIFT, array=array, count=len(drifted) - COLUMNS_SHOWN,
            total=len(verdicts), what="more columns drifted",
        )  # fmt: skip


def _verdict(one: ColumnDrift, rows: int, certain: bool) -> Verdict:
    if rows < ROWS_MIN:
        return Verdict.UNKNOWN
    if not certain or one.effect < EFFECT_MIN:
        return Verdict.OK
    return Verdict.PAGE if one.effect >= PAGE_EFFECT else Verdict.WARN
