"""How conversions are shown to a person.

Decides the looks only: progress while one waits, a table of candidates, the next command to type; and that paths and the
text of strangers are shown as they are.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import click
import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from edgeml.expectation import Expected
from edgeml.steps import Processing, Step

from .comparison import Comparison, comparison_of
from .report import CandidateRow, Conversion, Packaging, Report, RunRow
from .search import OnProgress, Progress
from .select import Verdict
from .units import size

WIDTH: Final = 110
_FOR_PROGRAMS: Final = {
    ".h": "source for TensorFlow Lite Micro",
    ".cc": "source for TensorFlow Lite Micro",
    ".pt": "for torch.jit.load, in Python or C++; no agent loads it",
}
REASONS_MAX: Final = 4
"""What is said in a terminal of those that were not chosen; all of it stands in the page and with --json."""


def print_json(content: Any) -> None:
    """Print anything as JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(content, enc_hook=str), indent=2).decode())


@contextmanager
def steps(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show what is being done, and for how long, on a terminal."""
    with searching(quiet=quiet) as on_progress:
        yield lambda text: on_progress(Progress(text))


@contextmanager
def searching(*, quiet: bool) -> Iterator[OnProgress]:
    """Show what is being done, how much of what is known of is done, and how long the rest may take, on a terminal."""
    # This stream for good: sys.stderr is exchanged while libraries talk.
    console = Console(file=sys.stderr)
    columns = (
        SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn(24), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("starting", total=None, left="")

        def on_progress(progress: Progress) -> None:
            left_s = progress.total_s - progress.done_s
            bar.update(
                task, description=progress.text, total=progress.total_s or None, completed=progress.done_s,
                left=f"about {left_s:.0f} s left" if left_s >= 1 else "",
            )  # fmt: skip

        yield on_progress


@contextmanager
def training(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each release that is trained."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("training {task.description}", markup=False),
        BarColumn(30),
        TextColumn("{task.completed}/{task.total} epochs"),
    )
    tasks: dict[str, Any] = {}
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:

        def on_epoch(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        yield on_epoch


def tell_conversion(conversion: Conversion) -> None:
    """Show the candidates, what became of them, the bundles and what to do next."""
    console = console_for_tables()
    tell_report(conversion.report, console)
    for warning in conversion.warnings:
        console.print(f"note: {warning}", soft_wrap=True)
    for bundle in conversion.bundles:
        console.print(
            f"{bundle.path}: {bundle.variant} for {', '.join(bundle.profiles)}, {size(bundle.length_bytes)}",
            soft_wrap=True,
        )
    for path in conversion.files:
        console.print(f"{path}: {_FOR_PROGRAMS[Path(path).suffix]}", soft_wrap=True)
    console.print(f"{conversion.page}: all of this with pictures", soft_wrap=True)
    if conversion.for_agents:
        console.print(f"next: edgeml fleet publish {shlex.join(conversion.for_agents)}", soft_wrap=True)


def literal_console(width: int | None = None) -> Console:
    """A console that shows every text as it is: a path may hold brackets or colons, which rich takes for its own."""
    return Console(highlight=False, markup=False, emoji=False, width=width)


def console_for_tables() -> Console:
    """A console that is wide enough for a table where nobody looks at it."""
    console = literal_console()
    return console if console.is_terminal else literal_console(WIDTH)


def tell_report(report: Report, console: Console) -> None:
    """Show the candidates and what became of them for each profile."""
    table = Table(
        title=f"{report.release}: {report.metric} {report.baseline:.4g} before, at most {report.max_drop:.2%} may be lost",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in (
        "candidate",
        "file",
        "runtime",
        report.metric,
        "agreement",
        "latency here",
        "memory here",
    ):
        table.add_column(heading, no_wrap=True)
    comparison = comparison_of(report)
    for row in report.candidates:
        for index, run in enumerate(row.runs or (None,)):
            first = (
                (row.variant, size(row.length_bytes) if row.length_bytes else "-") if not index else ("", "")
            )
            table.add_row(*first, *_figures(comparison, run))
    console.print(table)
    console.print(
        f"latency and memory: measured here, on {report.host}, over {report.samples} samples, one thread; "
        f"{comparison.note}another machine's are others",
        soft_wrap=True,
    )
    for line in _reasons(report.candidates):
        console.print(line, soft_wrap=True)
    for one in report.answers:
        console.print(f"{one.question} {' '.join(one.answer.splitlines())}", soft_wrap=True)


def tell_packaging(packaging: Packaging) -> None:
    """Show what was bundled."""
    console = literal_console()
    bundle = packaging.bundle
    console.print(
        f"{bundle.path}: {bundle.variant} for {', '.join(bundle.profiles)}, {size(bundle.length_bytes)}",
        soft_wrap=True,
    )
    console.print(
        f"checked in a child process on {packaging.runtime}: {packaging.latency_p50_ms:.3f} ms, {size(packaging.peak_memory_bytes)} of memory, "
        f"measured on {packaging.host}",
        soft_wrap=True,
    )
    if packaging.value is not None:
        console.print(f"{packaging.metric} {packaging.value:.4f} on {packaging.samples} samples")
    console.print(
        f"golden vectors: {packaging.golden_samples} samples, {packaging.golden_origin}", soft_wrap=True
    )
    for line in _steps(packaging.processing):
        console.print(line, soft_wrap=True)
    for line in _expected(packaging.expected):
        console.print(line, soft_wrap=True)
    if not packaging.has_monitor:
        console.print("no monitor: give --data to have drift told")


def _steps(processing: Processing | None) -> Iterator[str]:
    """Say in a line each what happens before and after the model."""
    if processing is None:
        return
    for one in processing.before:
        given = (
            f"{one.given.name} {one.given.dtype.value} {list(one.given.shape)} {one.given.layout}".rstrip()
        )
        yield f"before the model: {given} -> {' -> '.join(map(_step, one.steps))} -> {one.input}"
    if processing.after:
        yield f"after the model: {' -> '.join(map(_step, processing.after))}"
    if processing.results:
        yield f"callers get: {', '.join(processing.results)}"


def _expected(expected: Expected | None) -> Iterator[str]:
    """Say in a line each what is expected of inputs."""
    if expected is None:
        return
    for one in expected.inputs:
        low, high = ("any" if bound is None else f"{bound:.6g}" for bound in (one.low, one.high))
        missing = f", {one.missing_max:.3g} of it may be missing" if one.missing_max else ""
        yield f"expected of {one.input}: {low} to {high}{missing}; otherwise: {one.policy.value}"
    if expected.volume is not None:
        most = expected.volume.per_hour_max
        yield f"expected: {expected.volume.per_hour_min:g} to {'any number' if most is None else f'{most:g}'} requests an hour"


def _step(step: Step) -> str:
    said = msgspec.to_builtins(step)
    kind = said.pop("kind")
    return f"{kind}({', '.join(f'{name} {value}' for name, value in said.items())})" if said else str(kind)


def _figures(comparison: Comparison, run: RunRow | None) -> tuple[str, str, str, str, str]:
    if run is None:
        return "-", "-", "-", "-", "-"
    if run.value is None or run.agreement is None:
        return run.runtime, "-", "-", "-", "-"
    return (
        run.runtime,
        f"{run.value:.4g}" if abs(run.value) > 1 else f"{run.value:.4f}",
        f"{run.agreement:.4f}",
        comparison.latency(run),
        size(run.peak_memory_bytes or 0),
    )


def _reasons(rows: Sequence[CandidateRow]) -> Iterator[str]:
    """Say for each profile what was chosen, what was refused and why, and the best of those that were passed over."""
    for profile in dict.fromkeys(one.profile for row in rows for one in row.verdicts):
        yield f"for {profile}:"
        said = [(one, row.variant) for row in rows for one in row.verdicts if one.profile == profile]
        for verdict, most in (
            (Verdict.CHOSEN, 1),
            (Verdict.REFUSED, REASONS_MAX),
            (Verdict.PASSED_OVER, REASONS_MAX),
        ):
            these = [pair for pair in said if pair[0].verdict == verdict.value]
            for one, variant in these[:most]:
                there = (
                    f" ({one.latency_ms:.3g} ms {one.latency_basis})" if one.latency_ms is not None else ""
                )
                yield f"  {variant}{there} {one.verdict}: {one.reason}"
            if len(these) > most:
                yield f"  {len(these) - most} more {verdict.value}: the page tells why"
