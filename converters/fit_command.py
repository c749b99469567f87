"""`edgeml fit`: for every class of hardware, whether a model fits and what would make it fit.

Reads the model (`readable.py`), asks `estimate/fit.py`, prints. A file of an unknown origin is only read, or opened in the sandbox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from edgeml.profile import HardwareProfile

    from .estimate.fit import Fit, FitReport
    from .readable import Readable

TABLE_COLUMNS: Final = 100


@click.command()
@click.argument("model")
@click.option(
    "--shape", help="Shape of one sample without the batch, for a MODEL that does not say it: 1,32,32."
)
@click.option(
    "--profile",
    "profiles",
    multiple=True,
    help="Hardware to look at, by name or path; may be repeated. Default: every shipped one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def fit(model: str, *, shape: str | None, profiles: tuple[str, ...], as_json: bool) -> None:
    """Tell for each profile whether MODEL fits it, and what would make it fit.

    MODEL is a .onnx or .tflite file, or a bundle, which are read and not run: all but the file's length is estimated. Or it
    is any other model that `edgeml convert` takes, as file.py:factory, with --shape: then its float export is looked at.
    With --profile, the exit code is 3 if it does not fit one of them.

    \b
    Example:
        edgeml fit model.tflite
        edgeml fit net.py:model --shape 1,32,32
        edgeml fit model.onnx --profile raspberry-pi-4 --profile my-board.toml --json
    \f

    Raises:
        ConfigError: The model or a profile cannot be read, or is of no kind that is known.
        ArtifactError: The file is damaged.
        BackendError: The model cannot be exported.
        IncompatibleError: It does not fit a profile that was named.
    """
    from edgeml.errors import IncompatibleError
    from edgeml.profile import load, names

    from .estimate.fit import FitReport, Verdict, facts
    from .estimate.fit import fit as judge
    from .readable import parse_shape, read
    from .show import print_json

    known = [load(name) for name in profiles or names()]
    found = read(model, None if shape is None else parse_shape(shape))
    graph, length_bytes = found.graph, found.length_bytes
    report = FitReport(facts(graph, length_bytes), tuple(judge(graph, length_bytes, one) for one in known))
    if as_json:
        print_json(report)
    else:
        _tell(found, report, known)
    missed = [one for one in report.fits if one.verdict is Verdict.NOT]
    if profiles and missed:
        raise IncompatibleError(
            f"{found.name} does not fit {', '.join(one.profile for one in missed)}",
            hint=missed[0].findings[0].remedy,
        )


def _tell(found: Readable, report: FitReport, profiles: list[HardwareProfile]) -> None:
    from rich import box
    from rich.table import Table

    from .show import literal_console
    from .units import size

    model = report.model
    console = literal_console()
    console.print(
        f"{found.name}{f' ({found.source})' if found.source else ''}: {size(model.length_bytes)}, {model.parameters:,} parameters, {model.macs / 1e6:.2f} M MACs, "
        f"{size(model.peak_activation_bytes)} of activations at once, {'integer' if model.integer else 'float'}",
        soft_wrap=True,
    )  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("profile", "", "runtime"):
        table.add_column(heading, no_wrap=True)
    for heading in ("file", "of", "memory", "of", "latency"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in report.fits:
        table.add_row(*_cells(one))
    # Names and numbers that are cut say nothing: on a narrow terminal the rows run on instead.
    literal_console(max(console.width, TABLE_COLUMNS)).print(table)
    console.print(
        "memory (at most) and latency: estimated, one request on one thread; nothing was run",
        soft_wrap=True,
    )
    if model.unknown_shapes:
        console.print(
            f"tensors of free or unknown shapes: {model.unknown_shapes}; what they cost is not in these numbers",
            soft_wrap=True,
        )
    for one in report.fits:
        for finding in one.findings:
            console.print(
                f"{one.profile}: {finding.problem}. {finding.remedy[:1].upper()}{finding.remedy[1:]}.",
                soft_wrap=True,
            )
    micro = [one.name for one in profiles if any(runtime.value == "tflite-micro" for runtime in one.runtimes)]
    if any(one.profile in micro and one.verdict.value == "perhaps" for one in report.fits):
        console.print(
            "perhaps: the arena depends on the kernels that the firmware is built with", soft_wrap=True
        )


def _cells(one: Fit) -> tuple[str, ...]:
    return (
        one.profile,
        one.verdict.value,
        one.runtime or "none",
        _short(one.storage_bytes),
        _short(one.storage_budget_bytes),
        _short(one.memory_high_bytes),
        _short(one.memory_budget_bytes),
        "-" if one.latency_ms is None else f"{one.latency_ms:.3g} ms",
    )


def _short(count: int) -> str:
    """Write a number of bytes in three digits, for a table that a narrow terminal shows.

    >>> _short(812), _short(98_496), _short(12_000_000_000)
    ('812 B', '98.5 kB', '12 GB')
    """
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}"
