"""`edgeml check`: looks at data before a model is trained or calibrated with them.

Decides what is printed and that violations end it with exit code 3. What is found is decided in `data_check`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from .data_check import DataReport, Spec
    from .data_finding import Finding

VERDICTS_SHOWN = 8


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--spec",
    type=click.Path(path_type=Path),
    help="Bundle whose model the data are for: its tensors, ranges, monitor.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(data: Path, spec: Path | None, as_json: bool) -> None:
    """Look at DATA (.npz, .npy, .csv) before training or calibration: schema, ranges, missing values, drift, leakage.

    Exit code 3 if something is a violation, 0 if there are only warnings. It also says how many samples are enough to
    calibrate a quantizer.

    \b
    Example:
        edgeml check data.npz --spec digits-1.0.0-onnx-int8-s8s8.edgeml
    \f

    Raises:
        ArtifactError: There are violations, or the bundle is none.
        ConfigError: A file cannot be read.
    """
    from edgeml.errors import ArtifactError

    from .data_check import check_data
    from .data_file import read_arrays
    from .show import print_json

    report = check_data(read_arrays(data), _read_spec(spec) if spec else None)
    if as_json:
        print_json(report)
    else:
        tell(report)
    if report.violations:
        raise ArtifactError(
            f"{data.name}: {report.violations} {'violation' if report.violations == 1 else 'violations'}",
            hint=report.findings[0].hint or "mend the data, then check them again",
        )


def tell(report: DataReport) -> None:
    """Print what was found, gravest first."""
    for one in report.arrays:
        click.echo(f"{one.name}: {one.dtype} {list(one.shape)}, {one.role.value}")
    click.echo(
        f"held against {report.release}" if report.release else "no --spec: held against nothing but itself"
    )
    said = ""
    for finding in report.findings:
        click.echo(_line(finding))
        if finding.hint not in {"", said}:
            click.echo(f"{'':11}{finding.hint}")
            said = finding.hint
    for verdict in report.drift[:VERDICTS_SHOWN]:
        click.echo(
            f"drift      {verdict.array} {verdict.column}: {verdict.verdict.value}, evidence {verdict.log_e:.1f}, "
            f"effect {verdict.effect:.3f}, mean {verdict.mean_shift:+.2f} sd"
        )
    if len(report.drift) > VERDICTS_SHOWN:
        click.echo(f"           ... {len(report.drift) - VERDICTS_SHOWN} more columns; --json has all")


def _line(one: Finding) -> str:
    where = " ".join(part for part in (one.array, one.column) if part)
    counted = f"{one.count} of {one.total} " if one.total else ""
    said = f"{one.severity.value:10} {where + ': ' if where else ''}{counted}{one.what}"
    if one.example:
        said += f" ({one.example})"
    return said


def _read_spec(path: Path) -> Spec:
    from edgeml import bundle, monitor

    from .data_check import Spec

    with bundle.Bundle(path) as opened:
        watch = monitor.decode(opened.read(bundle.MONITOR)) if opened.has(bundle.MONITOR) else None
        return Spec(opened.manifest, watch)
