"""`edgeml measure`: what a bundle costs on the machine where this is typed.

Decides what is printed and where the record is written. How it is measured is decided in `measure`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from .machine_facts import Condition
    from .measurement import MeasurementRecord


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    help=".npz or .npy to feed instead of the bundle's golden vectors.",
)
@click.option("--threads", default=1, show_default=True, help="Threads of the runtime.")
@click.option("--runs", default=0, show_default="about a second", help="Requests that are timed.")
@click.option(
    "--out", type=click.Path(path_type=Path), help="Write the record there, for `edgeml profiles calibrate`."
)
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
def measure(
    bundle: Path, *, samples: Path | None, threads: int, runs: int, out: Path | None, as_json: bool
) -> None:
    """Verify BUNDLE, run its golden vectors and measure it here: latency, first call, loading, memory, heat.

    Needs only what a device has: numpy and a runtime.

    \b
    Example:
        edgeml measure digits-1.0.0-onnx-int8-s8s8.edgeml --out pi4.json
    \f

    Raises:
        ArtifactError: It is no bundle, or does not answer as recorded.
        ConfigError: The samples do not fit, or no file can be where the record is to be.
        StorageError: The record cannot be written.
    """
    from .atomic import check_place, replacing
    from .measure import Order
    from .measure import measure as run
    from .measurement import encode

    if out is not None:
        check_place(out)
    record = run(Order(bundle, threads, runs, samples))
    if out is not None:
        with replacing(out, mode=0o644) as temporary:
            temporary.write_bytes(encode(record))
    if as_json:
        click.echo(encode(record), nl=False)
    else:
        tell(record)


def tell(record: MeasurementRecord) -> None:
    """Print a record."""
    threads = "1 thread" if record.threads == 1 else f"{record.threads} threads"
    click.echo(f"{record.release} {record.variant}, measured on {record.host}")
    click.echo(f"{record.runtime}, {threads}, {record.runs} runs on {record.samples}")
    click.echo(
        f"latency   p50 {record.latency_p50_ms:.3f} ms, p95 {record.latency_p95_ms:.3f} ms, p99 {record.latency_p99_ms:.3f} ms"
    )
    click.echo(
        f"start     {record.load_ms:.0f} ms to load, {record.first_call_ms:.2f} ms for the first request"
    )
    click.echo(
        f"memory    {record.peak_memory_bytes / 1e6:.1f} MB at most, with interpreter and runtime; model file {record.model_bytes / 1e3:.1f} kB"
    )
    click.echo(
        f"golden    agreement {record.golden_agreement:.3f}, largest difference {record.golden_difference:.4f} of the range"
    )
    click.echo(f"processor {_state(record.before)} before, {_state(record.after)} after")
    click.echo(
        f"slowed    {record.throttling.value}: the last requests took {record.trend:.2f} times as long as the first"
    )


def _state(one: Condition) -> str:
    parts = [
        "" if one.clock_mhz is None else f"{one.clock_mhz:.0f} MHz",
        one.governor,
        "" if one.temperature_c is None else f"{one.temperature_c:.0f} °C",
    ]
    return " ".join(part for part in parts if part) or "unknown"
