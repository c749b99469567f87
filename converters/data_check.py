"""Looks at data before a model is trained or calibrated with them: arrays in, findings out.

Decides which array is held against which input of a bundle, in which order things are looked at, and what can be said
without a bundle. What each look finds is decided in `data_shape`, `data_values`, `data_splits`, `data_drift` and
`convergence`; reading files and printing is the command's business. Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from edgeml.errors import ConfigError
from edgeml.flow import is_fixed
from edgeml.manifest import Manifest, Task
from edgeml.monitor import Monitor
from edgeml.pipeline import Pipeline
from edgeml.tensors import TensorSpec

from . import data_splits
from .array_file import Array
from .convergence import Convergence, extremes, watch
from .data_drift import ColumnVerdict, check_drift, judge
from .data_file import NamedArray
from .data_finding import Finding, Kind, Severity, gravest_first
from .data_shape import check_shape, check_type, layout_of, mended
from .data_splits import CALIBRATION, EVALUATION, TRAINING, Role, role_of, sample_keys, split_of
from .data_values import Seen, check_values, columns_of, seen_bounds
from .dataset import CALIBRATION_MIN, EVALUATION_MIN

_LEAST = {CALIBRATION: CALIBRATION_MIN, EVALUATION: EVALUATION_MIN}


class ArrayFacts(msgspec.Struct, frozen=True):
    """What was looked at."""

    name: str
    role: Role
    dtype: str
    shape: tuple[int, ...]


class DataReport(msgspec.Struct, frozen=True):
    """All that was found, gravest first. `release` is what it was held against; empty: nothing."""

    release: str
    arrays: tuple[ArrayFacts, ...]
    findings: tuple[Finding, ...]
    drift: tuple[ColumnVerdict, ...]
    calibration: Convergence | None

    @property
    def violations(self) -> int:
        """How many findings are violations."""
        return sum(one.severity is Severity.VIOLATION for one in self.findings)


@dataclass(frozen=True, slots=True)
class Spec:
    """What data are held against: a bundle's manifest, and its monitor if it has one."""

    manifest: Manifest
    monitor: Monitor | None


def check_data(arrays: Sequence[NamedArray], spec: Spec | None) -> DataReport:
    """Look at all arrays of a file."""
    samples = [one for one in arrays if role_of(one) is Role.SAMPLES]
    findings = [*_whole(arrays, samples, spec)]
    drift: list[ColumnVerdict] = []
    keys = {}
    for one in samples:
        if not one.values.size or one.values.ndim < 2:
            findings.append(_no_samples(one))
            continue
        keys[one.name] = sample_keys(one.values)
        labels = data_splits.label_texts(_labels_of(one, arrays), len(one.values))
        findings += data_splits.check_duplicates(one.name, keys[one.name], labels)
        twin = next(
            (name for name, other in keys.items() if name != one.name and set(other) == set(keys[one.name])),
            None,
        )
        if twin is not None:
            findings.append(_same(one.name, twin))
            continue
        position = None if spec is None else _input_of(one.name, spec.manifest.surface.inputs)
        found, verdicts = (
            ([*_unreadable(one), *_alone(one)], ())
            if spec is None or position is None
            else _with_spec(one, spec, position)
        )
        findings += found
        drift += verdicts
    for known in (TRAINING, CALIBRATION):
        for name, mine in keys.items():
            judged = f"{EVALUATION}_{name.removeprefix(known + '_')}"
            if name.startswith(f"{known}_") and judged in keys:
                findings += data_splits.check_leakage(name, mine, judged, keys[judged])
    classes = () if spec is None else _classes(spec.manifest)
    for one in arrays:
        if role_of(one) is Role.LABELS:
            findings += data_splits.check_labels(one, _count_of(one, samples), classes)
        elif role_of(one) is Role.TARGETS:
            findings += data_splits.check_targets(one, _count_of(one, samples), classes)
    calibration = _calibration(samples)
    if calibration is not None:
        findings.append(_range_finding(calibration[0], calibration[1]))
    return DataReport(
        release="" if spec is None else spec.manifest.release,
        arrays=tuple(
            ArrayFacts(one.name, role_of(one), str(one.values.dtype), one.values.shape) for one in arrays
        ),
        findings=gravest_first(findings),
        drift=tuple(drift),
        calibration=None if calibration is None else calibration[1],
    )


def _whole(arrays: Sequence[NamedArray], samples: list[NamedArray], spec: Spec | None) -> Iterator[Finding]:
    """What is missing or does not fit together."""
    if not samples:
        yield Finding(
            severity=Severity.VIOLATION, kind=Kind.SCHEMA, array="", what="the file has no samples",
            example=", ".join(f"{one.name} {list(one.values.shape)}" for one in arrays[:5]),
            hint="save them as calibration_x, train_x or evaluation_x, [samples, ...]",
        )  # fmt: skip
    inputs = () if spec is None else spec.manifest.surface.inputs
    covered = {_input_of(one.name, inputs) for one in samples}
    for position, wanted in enumerate(inputs):
        if samples and position not in covered:
            yield Finding(
                severity=Severity.VIOLATION, kind=Kind.SCHEMA, array="", what=f"no array for the model's input {wanted.name}",
                hint=f"save it as {wanted.name}, or as evaluation_{wanted.name}",
            )  # fmt: skip
    splits = {split_of(one.name) for one in samples} & {CALIBRATION, EVALUATION, TRAINING}
    for split in (CALIBRATION, EVALUATION):
        if splits and split not in splits:
            yield Finding(
                severity=Severity.WARNING, kind=Kind.SCHEMA, array=f"{split}_x", what="is not in the file",
                hint="`edgeml convert` needs it",
            )  # fmt: skip
    # With a bundle, each is held against its input instead.
    named = [one for one in samples if spec is None and split_of(one.name) and one.values.ndim >= 2]
    for one in named[1:]:
        yield from _alike(named[0], one)
    for one in samples:
        least = _LEAST.get(split_of(one.name), 0)
        if one.values.ndim and one.values.size and len(one.values) < least:
            yield Finding(
                severity=Severity.VIOLATION, kind=Kind.SCHEMA, array=one.name, count=len(one.values), total=least,
                what=f"{len(one.values)} samples, at least {least} are needed", hint="some hundreds are better",
            )  # fmt: skip


def _alike(first: NamedArray, other: NamedArray) -> Iterator[Finding]:
    """Compare the form of two arrays of samples."""
    here, there = first.values.shape[1:], other.values.shape[1:]
    if here != there:
        layouts = layout_of(here), layout_of(there)
        swapped = all(layouts) and layouts[0] != layouts[1]
        yield Finding(
            severity=Severity.VIOLATION, kind=Kind.LAYOUT if swapped else Kind.SCHEMA, array=other.name,
            what=f"samples of shape {list(there)}" + (f" ({layouts[1]})" if swapped else "")
            + f", {first.name} has {list(here)}" + (f" ({layouts[0]})" if swapped else ""),
            hint="all arrays must be samples of the same input",
        )  # fmt: skip
    if first.values.dtype != other.values.dtype:
        yield Finding(
            severity=Severity.VIOLATION, kind=Kind.TYPE, array=other.name,
            what=f"elements are {other.values.dtype}, those of {first.name} {first.values.dtype}",
            hint="save both in the type that the model takes",
        )  # fmt: skip


def _no_samples(one: NamedArray) -> Finding:
    return Finding(
        severity=Severity.VIOLATION, kind=Kind.SCHEMA, array=one.name, what=f"shape {list(one.values.shape)}",
        hint="its first dimension counts samples, the others are one sample's",
    )  # fmt: skip


def _same(array: str, twin: str) -> Finding:
    return Finding(
        severity=Severity.NOTE, kind=Kind.DUPLICATE, array=array, what=f"the same samples as {twin}: their values are looked at once",
    )  # fmt: skip


def _alone(one: NamedArray) -> Iterator[Finding]:
    """Look at the values of samples without anything to hold them against."""
    if one.values.dtype.kind in "fiub":
        yield from check_values(one.name, columns_of(one, one.values), None, Seen())


def _with_spec(one: NamedArray, spec: Spec, position: int) -> tuple[list[Finding], tuple[ColumnVerdict, ...]]:
    """Hold one array against the bundle's input at `position`."""
    surface = spec.manifest.surface.inputs[position]
    findings = [*_unreadable(one)]
    findings += [
        found for found in (check_type(one, surface), check_shape(one, surface)) if found is not None
    ]
    values = mended(one.values, surface)
    if values is None:
        return [*findings, *_alone(one)], ()
    columns = columns_of(one, values, surface.layout)
    expected = None if spec.manifest.expected is None else spec.manifest.expected.of(surface.name)
    watched = spec.manifest.watched.inputs[position]
    seen = Seen()
    if spec.monitor is not None:
        bounds = None
        if watched == surface and surface.scale is None:
            bounds = seen_bounds(spec.monitor.columns, surface.name, len(columns.names))
        seen = Seen(spec.monitor.reference_rows, bounds)
    findings += check_values(one.name, columns, expected, seen)
    verdicts: tuple[ColumnVerdict, ...] = ()
    if spec.monitor is not None:
        counted = _watched(values, spec.manifest, position)
        if counted is None:
            findings.append(_not_told(one.name))
        else:
            verdicts = judge(one.name, counted, watched, spec.monitor, spec.manifest.watched)
            findings += check_drift(verdicts, len(values))
    return findings, verdicts


def _watched(values: Array, manifest: Manifest, position: int) -> Array | None:
    """Samples of one input as the monitor watches it; None if that takes the other inputs, or steps that refuse them."""
    if is_fixed(manifest.surface.inputs[position]) or manifest.processing is None:
        return values
    if len(manifest.inputs) > 1:
        return None
    try:
        return Pipeline(manifest).prepare_samples([values])[0]
    except ConfigError:
        return None


def _not_told(array: str) -> Finding:
    return Finding(
        severity=Severity.NOTE, kind=Kind.DRIFT, array=array, what="drift is not told: the bundle's steps cannot be run on this array alone",
    )  # fmt: skip


def _unreadable(one: NamedArray) -> Iterator[Finding]:
    if one.unreadable:
        cell = one.unreadable[0]
        yield Finding(
            severity=Severity.VIOLATION, kind=Kind.TYPE, array=one.name, column=cell.column, count=one.unreadable_count,
            total=one.values.size, what="cells are no numbers (below they count as missing)",
            example=f"row {cell.row}: {cell.text!r}", hint="leave a cell empty where there is no value",
        )  # fmt: skip


def _input_of(name: str, inputs: Sequence[TensorSpec]) -> int | None:
    """Which input an array is for."""
    if len(inputs) == 1:
        return 0
    return next(
        (i for i, one in enumerate(inputs) if name == one.name or name.endswith(f"_{one.name}")), None
    )


def _labels_of(samples: NamedArray, arrays: Sequence[NamedArray]) -> NamedArray | None:
    split = split_of(samples.name)
    labels = [one for one in arrays if role_of(one) is Role.LABELS]
    if split or samples.name == "x":
        return next((one for one in labels if split_of(one.name) == split), None)
    return labels[0] if len(labels) == 1 else None


def _count_of(labels: NamedArray, samples: list[NamedArray]) -> int | None:
    """How many samples labels belong to."""
    split = split_of(labels.name)
    mine = [one for one in samples if split_of(one.name) == split] or (samples if not split else [])
    return len(mine[0].values) if mine and mine[0].values.ndim else None


def _classes(manifest: Manifest) -> tuple[str, ...]:
    if manifest.task is not Task.CLASSIFICATION:
        return ()
    return manifest.labels or tuple(map(str, range(manifest.outputs[0].sample_elements)))


def _calibration(samples: list[NamedArray]) -> tuple[str, Convergence] | None:
    """Watch the range of what would be calibrated with: calibration_x, else train_x, else the only samples there are."""
    wanted = [f"{CALIBRATION}_x", f"{TRAINING}_x"]
    usable = [
        one for one in samples if one.values.ndim >= 2 and one.values.dtype.kind in "fiu" and one.values.size
    ]
    chosen = next((one for name in wanted for one in usable if one.name == name), None)
    if chosen is None and len(usable) == 1:
        chosen = usable[0]
    if chosen is None:
        return None
    minima, maxima = extremes(np.asarray(chosen.values))
    return (chosen.name, watch(minima, maxima)) if len(minima) else None


def _range_finding(array: str, seen: Convergence) -> Finding:
    where = f"their range is {seen.low:.6g} to {seen.high:.6g}"
    if seen.is_settled:
        return Finding(
            severity=Severity.NOTE, kind=Kind.CALIBRATION, array=array, count=max(seen.needed, CALIBRATION_MIN), total=seen.samples,
            what=f"samples are enough to calibrate: the first {seen.needed} in any order show 99 % of the range; {where}",
        )  # fmt: skip
    return Finding(
        severity=Severity.WARNING, kind=Kind.CALIBRATION, array=array, count=seen.needed, total=seen.samples,
        what=f"samples were needed to see 99 % of the range: it has not settled, {where}",
        hint="give more samples, or look at the few with extreme values: are they real?",
    )  # fmt: skip
