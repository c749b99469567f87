"""`edgeml fleet samples`: inputs that devices sent, for people to label.

Decides how the commands are written and answered. What is found is decided in `samples`, the file in `samples_export`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .options import in_fleet, json_option, open_fleet, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from .samples import Filter, SampleCount

LIMIT: Final = 10_000

_device = click.option("--device", metavar="NAME", help="Only of this device.")
_release = click.option("--release", metavar="MODEL@VERSION", help="Only of this release.")
_model = click.option("--model", metavar="NAME", help="Only of this model's releases.")
_since = click.option("--since", metavar="DURATION", help="Only what came in since then, for example 7d.")


def _filtered(command: Callable[..., None]) -> Callable[..., None]:
    for option in (_since, _model, _release, _device):
        command = option(command)
    return command


@click.group()
def samples() -> None:
    """Inputs that devices were asked to sample (telemetry.samples in their agent.toml).

    \b
    Example:
        edgeml fleet samples ls
        edgeml fleet samples export --model digits --out samples.npz
    """


@samples.command("ls")
@_filtered
@json_option
@in_fleet
def ls_command(context: click.Context, directory: str | None, form: str | None, **wanted: str | None) -> None:
    """List what is stored, by device and release: who sends what it sees, and how much.

    \b
    Example:
        edgeml fleet samples ls --json
        edgeml fleet samples ls --model digits --since 7d
    \f

    Raises:
        ConfigError: There is no fleet here, or the duration is none.
    """
    from .samples import count_samples

    _home, _config, store = open_fleet(context, directory)
    with store.read() as connection:
        counts = count_samples(connection, _filter(wanted))
    if form == "json":
        print_json(counts)
        return
    if not counts:
        click.echo("no samples are stored; devices sample only if their agent.toml says so")
        return
    for line in _lines(counts):
        click.echo(line)


@samples.command("export")
@_filtered
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="File to write; its name ends in .npz.",
)
@click.option(
    "--limit", type=click.IntRange(min=1), default=LIMIT, show_default=True, help="The newest so many."
)
@json_option
@in_fleet
def export_command(
    context: click.Context,
    directory: str | None,
    *,
    out: Path,
    limit: int,
    form: str | None,
    **wanted: str | None,
) -> None:
    """Write samples to a .npz, newest first: an array for each input, and where each sample came from.

    \b
    Example:
        edgeml fleet samples export --release digits@1.0.0 --out samples.npz
    \f

    Raises:
        ConfigError: There is no fleet here, there are no such samples, or their inputs differ.
        StorageError: The disk refused.
    """
    from .samples import newest_samples
    from .samples_export import export

    _home, _config, store = open_fleet(context, directory)
    with store.read() as connection:
        done = export(newest_samples(connection, _filter(wanted), limit), out)
    if form == "json":
        print_json(done)
        return
    inputs = ", ".join(f"{name} {looks}" for name, looks in done.inputs.items())
    click.echo(f"{done.samples} samples are in {out}: {inputs}")


def _filter(wanted: dict[str, str | None]) -> Filter:
    from edgeml.clock import SystemClock
    from edgeml.ids import DeviceId, ReleaseId

    from .durations import parse_duration_s
    from .samples import Filter

    device, release, since = wanted["device"], wanted["release"], wanted["since"]
    return Filter(
        DeviceId(device) if device else None,
        ReleaseId(release) if release else None,
        wanted["model"],
        SystemClock().now_ms() - round(parse_duration_s(since) * 1000) if since else 0,
    )


def _lines(counts: tuple[SampleCount, ...]) -> list[str]:
    from datetime import UTC, datetime

    lines = [f"{'DEVICE':<24}{'RELEASE':<24}{'UNCERTAIN':>10}{'RANDOM':>10}{'BYTES':>12}  NEWEST (UTC)"]
    lines += [
        f"{one.device:<24}{one.release:<24}{one.uncertain:>10}{one.random:>10}{one.stored_bytes:>12}  "
        f"{datetime.fromtimestamp(one.newest_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
        for one in counts
    ]
    return lines
