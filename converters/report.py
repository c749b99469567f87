"""What a conversion found out, as a record: `report.json` in the bundle, and `--json`.

Decides the fields and their units. How they are shown to people is `display.py`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edgeml.expectation import Expected
from edgeml.ids import Digest
from edgeml.steps import Processing

from .candidate import Candidate, Failed, Measured
from .select import Floor, Selection


class VerdictRow(msgspec.Struct, frozen=True):
    """What became of a candidate for one profile."""

    profile: str
    verdict: str
    reason: str


class CandidateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate; figures are None if it did not run. Latency and memory were measured on the report's host."""

    variant: str
    steps: str
    length_bytes: int
    sha256: Digest | None
    value: float | None
    agreement: float | None
    latency_p50_ms: float | None
    latency_p95_ms: float | None
    peak_memory_bytes: int | None
    failure: str
    verdicts: tuple[VerdictRow, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A conversion's candidates and the floor they were held to."""

    release: str
    host: str
    metric: str
    baseline: float
    max_drop: float
    samples: int
    candidates: tuple[CandidateRow, ...]


class WrittenBundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was written. `sha256` is of the whole file."""

    path: str
    variant: str
    profiles: tuple[str, ...]
    length_bytes: int
    sha256: Digest


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion gives back."""

    report: Report
    bundles: tuple[WrittenBundle, ...]
    warnings: tuple[str, ...] = ()


class Packaging(msgspec.Struct, frozen=True, kw_only=True):
    """What packaging an existing model gives back. `value` is None where there were no labels to score it by."""

    bundle: WrittenBundle
    host: str
    runtime: str
    latency_p50_ms: float
    latency_p95_ms: float
    peak_memory_bytes: int
    metric: str
    value: float | None
    samples: int
    golden_samples: int
    golden_origin: str
    has_monitor: bool
    processing: Processing | None = None
    expected: Expected | None = None


def candidate_rows(
    candidates: Sequence[Candidate], selections: Sequence[Selection]
) -> tuple[CandidateRow, ...]:
    """Join candidates with what became of them."""
    return tuple(_row(index, one, selections) for index, one in enumerate(candidates))


def report_of(release: str, host: str, floor: Floor, samples: int, rows: tuple[CandidateRow, ...]) -> Report:
    """Make a conversion's report."""
    return Report(
        release=release, host=host, metric=floor.metric, baseline=floor.baseline, max_drop=floor.max_drop,
        samples=samples, candidates=rows,
    )  # fmt: skip


def encode(record: Report | Conversion | Packaging) -> bytes:
    """Readable JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def _row(index: int, one: Candidate, selections: Sequence[Selection]) -> CandidateRow:
    measured = one.outcome if isinstance(one.outcome, Measured) else None
    judgements = [(selection.profile, selection.judgements[index]) for selection in selections]
    return CandidateRow(
        variant=one.recipe.variant,
        steps=one.recipe.steps,
        length_bytes=one.length_bytes,
        sha256=one.sha256,
        value=measured.value if measured else None,
        agreement=measured.agreement if measured else None,
        latency_p50_ms=measured.latency_p50_ms if measured else None,
        latency_p95_ms=measured.latency_p95_ms if measured else None,
        peak_memory_bytes=measured.peak_memory_bytes if measured else None,
        failure=one.outcome.reason if isinstance(one.outcome, Failed) else "",
        verdicts=tuple(VerdictRow(profile, each.verdict.value, each.reason) for profile, each in judgements),
    )
