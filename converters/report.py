"""What a conversion found out, as a record: `report.json` in the bundle, and `--json`.

Decides the fields and their units. How they are shown to people is `show.py`'s business, and `explain/report_page.py`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from edgeml.expectation import Expected
from edgeml.ids import Digest
from edgeml.manifest import RuntimeFamily
from edgeml.profile import DeviceRuntime
from edgeml.steps import Processing

from .candidate import Candidate, Failed, Placement, Run
from .recipe import Recipe
from .select import Selection


@dataclass(frozen=True, slots=True)
class View:
    """How one profile sees all candidates, and what it chose."""

    placements: tuple[Placement, ...]
    selection: Selection


class VerdictRow(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a candidate for one profile.

    Latency and memory are that profile's, None where nobody can say; each basis says where its number comes from.
    """

    profile: str
    verdict: str
    reason: str
    latency_ms: float | None
    latency_basis: str
    memory_bytes: float | None
    memory_basis: str


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """What happened on one runtime, on the report's host; figures are None if it did not run, and `failure` says why."""

    runtime: str
    version: str
    value: float | None = None
    agreement: float | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    peak_memory_bytes: int | None = None
    failure: str = ""
    latency_turns_ms: float | None = None
    """p50 as measured in turns with the others that keep to the floor; None where it was not."""

    @property
    def latency_ms(self) -> float | None:
        """p50, in turns where it was measured so: others' were measured minutes apart."""
        return self.latency_p50_ms if self.latency_turns_ms is None else self.latency_turns_ms


class CandidateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One candidate. `failure` says why there is no file, `is_plain` that nothing but an export was done."""

    variant: str
    steps: str
    length_bytes: int
    sha256: Digest | None
    runs: tuple[RunRow, ...]
    failure: str
    verdicts: tuple[VerdictRow, ...]
    note: str = ""
    is_plain: bool = False

    @property
    def ran(self) -> RunRow | None:
        """The first runtime that ran it."""
        return next((run for run in self.runs if run.value is not None), None)


class LayerRow(msgspec.Struct, frozen=True, kw_only=True):
    """What quantizing one layer alone costs: the metric's drop, the agreement, the signal-to-noise ratio of its output."""

    layer: str
    operator: str
    parameters: int
    drop: float
    agreement: float
    sqnr_db: float | None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A question that users ask, and what this conversion says to it."""

    question: str
    answer: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A conversion's candidates and the floor they were held to."""

    release: str
    source: str
    host: str
    metric: str
    direction: str
    baseline: float
    max_drop: float
    samples: int
    candidates: tuple[CandidateRow, ...]
    layers: tuple[LayerRow, ...] = ()
    answers: tuple[Answer, ...] = ()


class WrittenBundle(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle that was written. `sha256` is of the whole file."""

    path: str
    variant: str
    runtime: RuntimeFamily
    profiles: tuple[str, ...]
    length_bytes: int
    sha256: Digest


class Conversion(msgspec.Struct, frozen=True, kw_only=True):
    """What a conversion gives back. `for_agents` has the paths of those bundles that an agent of some profile loads."""

    report: Report
    bundles: tuple[WrittenBundle, ...]
    for_agents: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    page: str = ""
    files: tuple[str, ...] = ()


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
    candidates: Sequence[Candidate],
    views: Sequence[View],
    notes: Mapping[Recipe, str],
    turns_ms: Callable[[Recipe, DeviceRuntime], float | None],
) -> tuple[CandidateRow, ...]:
    """Join candidates with what became of them for each profile, what there is to say of them, and latencies in turns."""
    return tuple(
        _row(
            one,
            views,
            notes.get(one.recipe, ""),
            tuple(_run(run, turns_ms(one.recipe, run.runtime)) for run in one.runs),
        )
        for one in candidates
    )


def encode(record: Report | Conversion | Packaging) -> bytes:
    """Readable JSON with a final newline."""
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def _row(one: Candidate, views: Sequence[View], note: str, runs: tuple[RunRow, ...]) -> CandidateRow:
    return CandidateRow(
        variant=one.name,
        steps=one.recipe.described,
        length_bytes=one.length_bytes,
        sha256=one.sha256,
        runs=runs,
        failure=one.failure,
        verdicts=tuple(_verdict(view, index) for view in views if (index := _place(view, one)) is not None),
        note=note,
        is_plain=one.recipe.is_plain,
    )


def _run(run: Run, turns_ms: float | None) -> RunRow:
    if isinstance(run.outcome, Failed):
        return RunRow(runtime=run.runtime.value, version=run.version, failure=run.outcome.reason)
    return RunRow(
        runtime=run.runtime.value, version=run.version, value=run.outcome.value, agreement=run.outcome.agreement,
        latency_p50_ms=run.outcome.latency_p50_ms, latency_p95_ms=run.outcome.latency_p95_ms,
        peak_memory_bytes=run.outcome.peak_memory_bytes, latency_turns_ms=turns_ms,
    )  # fmt: skip


def _place(view: View, candidate: Candidate) -> int | None:
    """Where a profile has a candidate; None if it has no runtime for it."""
    places = [index for index, one in enumerate(view.placements) if one.candidate is candidate]
    return places[0] if places else None


def _verdict(view: View, index: int) -> VerdictRow:
    placement, judgement = view.placements[index], view.selection.judgements[index]
    latency, memory = placement.latency_ms, placement.memory_bytes
    return VerdictRow(
        profile=view.selection.profile,
        verdict=judgement.verdict.value,
        reason=judgement.reason,
        latency_ms=latency.value if latency else None,
        latency_basis=latency.basis.value if latency else "",
        memory_bytes=memory.value if memory else None,
        memory_basis=memory.basis.value if memory else "",
    )
