"""How conversions are shown to a person.

Decides the looks only: progress while one waits, a table of candidates, the next command to type.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import click
import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from edgeml.errors import ConfigError
from edgeml.expectation import Expected
from edgeml.steps import Processing, Step

from .report import CandidateRow, Conversion, Packaging
from .select import Verdict, size

BARE_FRACTION_MAX: Final = 0.1


def fraction(text: str) -> float:
    """Read `0.5%` or `0.005`. A bare 0.5 is refused: it would be 50 %, and mostly 0.5 % is meant.

    Raises:
        ConfigError: Neither, or not between 0 and 1.

    >>> fraction("0.5%"), fraction("0.01")
    (0.005, 0.01)
    """
    percent = text.endswith("%")
    try:
        value = float(text.removesuffix("%")) / (100 if percent else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ConfigError(f"{text!r} is no drop", hint="write 0.5% or 0.005")
    if not percent and value > BARE_FRACTION_MAX:
        raise ConfigError(
            f"a drop of {text} would be {value:.0%}", hint=f"write {text}%, or {value:.0%} if you mean that"
        )
    return value


def print_json(content: Any) -> None:
    """Print anything as JSON."""
    click.echo(msgspec.json.format(msgspec.json.encode(content, enc_hook=str), indent=2).decode())


@contextmanager
def steps(*, quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show what is being done, and for how long, on a terminal."""
    # This stream for good: sys.stderr is exchanged while libraries talk.
    console = Console(file=sys.stderr)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    ) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda text: progress.update(task, description=text)


@contextmanager
def training(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar for each release that is trained."""
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("training {task.description}"),
        BarColumn(30),
        TextColumn("{task.completed}/{task.total} epochs"),
    )
    tasks: dict[str, Any] = {}
    with Progress(
        *columns, console=console, transient=True, disable=quiet or not console.is_terminal
    ) as progress:

        def on_epoch(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        yield on_epoch


def tell_conversion(conversion: Conversion) -> None:
    """Show the candidates, the bundles and what to do next."""
    report = conversion.report
    console = Console(highlight=False)
    table = Table(
        title=f"{report.release}: {report.metric} {report.baseline:.4f} before, at most {report.max_drop:.2%} may be lost",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("candidate", "file", report.metric, "agreement", "latency here", "memory here"):
        table.add_column(heading, no_wrap=True)
    for row in report.candidates:
        table.add_row(row.variant, size(row.length_bytes), *_figures(row))
    console.print(table)
    console.print(
        f"here: measured on {report.host} over {report.samples} samples, one thread; another machine's latency is another",
        soft_wrap=True,
    )
    for line in _reasons(report.candidates):
        console.print(line, soft_wrap=True)
    for warning in conversion.warnings:
        console.print(f"note: {warning}")
    for bundle in conversion.bundles:
        console.print(
            f"{bundle.path}: {bundle.variant} for {', '.join(bundle.profiles)}, {size(bundle.length_bytes)}",
            soft_wrap=True,
        )
    console.print(
        f"next: edgeml fleet publish {' '.join(bundle.path for bundle in conversion.bundles)}", soft_wrap=True
    )


def tell_packaging(packaging: Packaging) -> None:
    """Show what was bundled."""
    console = Console(highlight=False)
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
        console.print(line, soft_wrap=True, markup=False)
    for line in _expected(packaging.expected):
        console.print(line, soft_wrap=True, markup=False)
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


def _figures(row: CandidateRow) -> tuple[str, str, str, str]:
    if (
        row.value is None
        or row.agreement is None
        or row.latency_p50_ms is None
        or row.peak_memory_bytes is None
    ):
        return "-", "-", "-", "-"
    return (
        f"{row.value:.4f}",
        f"{row.agreement:.4f}",
        f"{row.latency_p50_ms:.3f} ms",
        size(row.peak_memory_bytes),
    )


def _reasons(rows: Sequence[CandidateRow]) -> Iterator[str]:
    """Say for each profile what became of each candidate, the chosen one first."""
    for profile in dict.fromkeys(one.profile for row in rows for one in row.verdicts):
        yield f"for {profile}:"
        said = [(one, row.variant) for row in rows for one in row.verdicts if one.profile == profile]
        for one, variant in sorted(said, key=lambda pair: pair[0].verdict != Verdict.CHOSEN.value):
            yield f"  {variant} {one.verdict}: {one.reason}"
