"""What stands on a conversion's page.

Decides which facts, tables and pictures tell a conversion, from its report and what was observed on the way. How a page
looks is `report_page.py`'s business. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from ..calibration import Observed, convergence
from ..comparison import comparison_of
from ..metrics import Direction
from ..report import CandidateRow, Report, VerdictRow
from ..select import Floor, Verdict
from ..units import size
from .axis import Unit
from .pictures import Bar, Better, Mark, Range, Scatter, Standing, draw_bars, draw_ranges, draw_scatter
from .report_page import Answer, Fact, Page, Picture, Row, Table

_HEADINGS: Final = (
    "candidate",
    "file",
    "runtime",
    "metric",
    "agreement",
    "latency",
    "memory",
    "what was done",
)


@dataclass(frozen=True, slots=True)
class Shown:
    """What a page is made of: the record, the floor, and what the float model's tensors held while it was calibrated."""

    report: Report
    floor: Floor
    observed: tuple[Observed, ...]
    unreachable: tuple[str, ...]
    """Runtimes of the profiles that candidates could not be run on from here."""


def page_of(shown: Shown) -> Page:
    """Make the page."""
    report = shown.report
    return Page(
        title=f"{report.release}: what was tried, and what became of it",
        facts=_facts(shown),
        tables=(
            _candidates(report),
            *(_verdicts(report, profile) for profile in _profiles(report)),
            *_layers(report),
        ),
        pictures=(*_scatters(shown), *_sensitivity(report), *_ranges(shown.observed)),
        answers=tuple(Answer(one.question, tuple(one.answer.split("\n"))) for one in report.answers),
    )


def _facts(shown: Shown) -> tuple[Fact, ...]:
    report = shown.report
    facts = [
        Fact("source", report.source),
        Fact("metric", f"{report.metric}, {report.direction}; {report.baseline:.4g} of the source"),
        Fact("floor", f"at most {shown.floor.said(report.max_drop)} may be lost"),
        Fact("evaluated on", f"{report.samples} samples"),
        Fact("measured on", f"{report.host}, one thread"),
    ]
    if shown.unreachable:
        facts.append(Fact("not run on", f"{', '.join(shown.unreachable)}: not to be had here"))
    return tuple(facts)


def _profiles(report: Report) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.profile for row in report.candidates for one in row.verdicts))


def _candidates(report: Report) -> Table:
    rows, comparison = [], comparison_of(report)
    for candidate in report.candidates:
        standing = _standing(candidate)
        for index, run in enumerate(candidate.runs or (None,)):
            name = (candidate.variant, size(candidate.length_bytes) if candidate.length_bytes else "-")
            done = f"{candidate.steps}{'. ' if candidate.note else ''}{candidate.note}"
            figures = ("-", "-", "-", "-", "-")
            if run is not None and run.value is not None and run.agreement is not None:
                figures = (
                    run.version or run.runtime, f"{run.value:.4g}", f"{run.agreement:.4f}",
                    comparison.latency(run), size(run.peak_memory_bytes or 0),
                )  # fmt: skip
            elif run is not None:
                figures = (run.runtime, "-", "-", "-", "-")
            rows.append(
                Row((*(name if not index else ("", "")), *figures, done if not index else ""), standing)
            )
    return Table(
        "Candidates", (*_HEADINGS[:3], report.metric, *_HEADINGS[4:]), tuple(rows),
        f"Latency and memory were measured on {report.host}, of one request at a time; "
        f"{comparison.note}another machine's are others.",
    )  # fmt: skip


def _verdicts(report: Report, profile: str) -> Table:
    order = [verdict.value for verdict in (Verdict.CHOSEN, Verdict.PASSED_OVER, Verdict.REFUSED)]
    found = [(row, one) for row in report.candidates for one in row.verdicts if one.profile == profile]
    found.sort(key=lambda pair: order.index(pair[1].verdict))
    rows = tuple(
        Row(
            (row.variant, one.verdict, _there(one), _memory(one), one.reason),
            Standing.CHOSEN if one.verdict == Verdict.CHOSEN.value else None,
        )
        for row, one in found
    )
    return Table(f"For {profile}", ("candidate", "verdict", "latency there", "memory there", "why"), rows)


def _there(one: VerdictRow) -> str:
    return "-" if one.latency_ms is None else f"{one.latency_ms:.3g} ms, {one.latency_basis}"


def _memory(one: VerdictRow) -> str:
    return "-" if one.memory_bytes is None else f"{size(one.memory_bytes)}, {one.memory_basis}"


def _layers(report: Report) -> tuple[Table, ...]:
    if not report.layers:
        return ()
    rows = tuple(
        Row((one.layer, one.operator, str(one.parameters), f"{one.drop:+.4f}", f"{one.agreement:.4f}", f"{one.sqnr_db or 0:.1f} dB"))
        for one in report.layers
    )  # fmt: skip
    headings = ("layer", "operator", "parameters", f"{report.metric} lost", "agreement", "signal to noise")
    return (Table("Each layer quantized alone", headings, rows, "The worst comes first."),)


def _standing(row: CandidateRow) -> Standing:
    verdicts = {one.verdict for one in row.verdicts}
    if Verdict.CHOSEN.value in verdicts:
        return Standing.CHOSEN
    if row.is_plain:
        return Standing.SOURCE
    return Standing.FITS if Verdict.PASSED_OVER.value in verdicts else Standing.REFUSED


def _scatters(shown: Shown) -> tuple[Picture, ...]:
    report = shown.report
    better = Better.HIGHER if shown.floor.direction is Direction.HIGHER else Better.LOWER
    worst = _worst(shown.floor)
    pictures = []
    for title, unit, cost in (
        ("file size", Unit.BYTES, lambda row: float(row.length_bytes)),
        ("latency on this host", Unit.MILLISECONDS, lambda row: row.ran.latency_ms),
    ):
        marks = tuple(
            Mark(row.variant, cost(row), row.ran.value, _standing(row))
            for row in report.candidates
            if row.ran is not None and row.ran.value is not None
        )
        if marks:
            drawing = draw_scatter(
                Scatter(f"{report.metric} by {title}", title, unit, report.metric, marks, worst, better)
            )
            caption = f"{report.metric} and {title} of every candidate that ran; none beats those on the line in both."
            pictures.append(Picture(f"{report.metric} and {title}", drawing, caption))
    return tuple(pictures)


def _worst(floor: Floor) -> float:
    if floor.direction is Direction.HIGHER:
        return floor.baseline - floor.max_drop
    return floor.baseline + floor.max_drop * (abs(floor.baseline) or 1.0)


def _sensitivity(report: Report) -> tuple[Picture, ...]:
    if not report.layers:
        return ()
    bars = [Bar(one.layer, (1 - one.agreement) * 100, f"{one.sqnr_db or 0:.0f} dB") for one in report.layers]
    drawing = draw_bars("answers that change", "% of the answers change", bars)
    caption = (
        "The part of the answers that change when this layer alone is quantized, and the noise that it adds."
    )
    return (Picture("Sensitivity of the layers", drawing, caption),)


def _ranges(observed: Sequence[Observed]) -> tuple[Picture, ...]:
    if not observed:
        return ()
    settled = [(one, convergence([one])) for one in observed]
    ranges = [
        Range(one.tensor, one.low, one.high, each.enough if each.is_settled else None, each.samples)
        for one, each in settled
    ]
    whole = convergence(observed)
    said = (
        f"{whole.enough} of {whole.samples} calibration samples were enough"
        if whole.is_settled
        else f"the ranges still grew after {whole.enough} of {whole.samples} samples: more may widen them"
    )
    caption = f"What each tensor of the float model held while it was calibrated; {said}."
    return (Picture("Calibration ranges", draw_ranges("calibration ranges", ranges), caption),)
