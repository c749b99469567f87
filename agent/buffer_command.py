"""`edgeml agent buffer`: what waits on a device, where a person can see it.

Parses, calls one function, prints. Heavy libraries are loaded inside the bodies.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeml.telemetry import Stream

if TYPE_CHECKING:
    from .buffer_reader import BufferView, StreamView

CONFIG = click.option(
    "-c", "--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), default="agent.toml",
    envvar="EDGEML_AGENT", show_default=True, help="The device's settings.",
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
BAR_ROWS = 2000
"""Fewer rows are written before a bar could be looked at."""


@click.group()
def buffer() -> None:
    """Look at the telemetry that waits on this device (needs the [tools] extra)."""


@buffer.command("ls")
@CONFIG
@JSON
def ls_command(config_path: Path, as_json: bool) -> None:
    """List what is held, by stream and by life of the agent, and what became of all the rest.

    Works while the agent runs. Rows that the agent has in memory only, at most 50, are not in the file yet.

    \b
    Example:
        edgeml agent buffer ls -c cam-1/agent.toml --json
    """
    import msgspec

    from .buffer_reader import look

    found = look(_storage(config_path))
    if as_json:
        click.echo(msgspec.json.encode(found))
        return
    for line in _lines(found):
        click.echo(line)


@buffer.command("export")
@CONFIG
@click.option(
    "--to",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="File to write; its name ends in .jsonl or .csv.",
)
@click.option(
    "--stream", type=click.Choice([one.value for one in Stream]), help="Only this one; all if not given."
)
def export_command(config_path: Path, to: Path, stream: str | None) -> None:
    """Write the rows that are held to a file, oldest first. Works while the agent runs; nothing is deleted.

    \b
    Example:
        edgeml agent buffer export -c cam-1/agent.toml --to windows.csv --stream windows
    """
    from .buffer_export import check_name, export
    from .buffer_reader import find_buffer

    check_name(to)
    path = find_buffer(_storage(config_path))
    streams = (Stream(stream),) if stream else tuple(Stream)
    with click.progressbar(
        length=0, label=to.name, file=sys.stderr, hidden=True, update_min_steps=BAR_ROWS // 20
    ) as bar:

        def advance(done: int, total: int) -> None:
            bar.hidden = total < BAR_ROWS or not sys.stderr.isatty()
            bar.length = max(total, done)
            bar.update(1)

        exported = export(path, to, streams, advance)
    click.echo(f"{exported.rows} rows are in {to}")
    if exported.unreadable:
        click.echo(f"{exported.unreadable} rows could not be read and were left out", err=True)


@buffer.command("vacuum")
@CONFIG
@JSON
def vacuum_command(config_path: Path, as_json: bool) -> None:
    """Give free pages of the file back to the disk. Only while the agent does not run.

    \b
    Example:
        edgeml agent buffer vacuum -c cam-1/agent.toml
    """
    import msgspec

    from .buffer_vacuum import vacuum

    done = vacuum(_storage(config_path))
    if as_json:
        click.echo(msgspec.json.encode(done))
        return
    click.echo(f"{done.before_bytes} bytes before, {done.after_bytes} after")


def _storage(config_path: Path) -> Path:
    from .config import load

    return Path(load(config_path).storage)


def _lines(found: BufferView) -> list[str]:
    running = "runs" if found.agent_running else "does not run"
    lines = [f"{found.path}: {found.file_bytes} bytes; the agent {running}"]
    for one in found.streams:
        lines += _stream_lines(one)
    return lines


def _stream_lines(one: StreamView) -> list[str]:
    from datetime import UTC, datetime

    def time(at_ms: int | None) -> str:
        try:
            return "-" if at_ms is None else f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M:%S}"
        except (OverflowError, ValueError, OSError):
            return str(at_ms)  # a device's clock may say anything

    reasons = ", ".join(
        f"{name.replace('_', ' ')} {getattr(one.reasons, name)}"
        for name in one.reasons.__struct_fields__
        if getattr(one.reasons, name)
    )
    account = f"produced {one.produced} = acknowledged {one.acknowledged} + dropped {one.dropped}"
    sent = f"; sent {one.sent}"
    why = f" ({reasons})" if reasons else ""
    lines = ["", f"{one.stream.value}: {account}{why} + held {one.held}{sent}"]
    if one.boots:
        lines.append(f"  {'BOOT':<18}{'ROWS':>8}{'BYTES':>12}  {'OLDEST (UTC)':<21}NEWEST (UTC)")
    lines += [
        f"  {boot.boot:<18}{boot.rows:>8}{boot.payload_bytes:>12}  {time(boot.oldest_ms):<21}{time(boot.newest_ms)}"
        for boot in one.boots
    ]
    return lines
