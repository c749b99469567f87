"""The device's commands: run the agent, ask it, flash it.

Parses, calls one function, prints. Heavy libraries are loaded inside the bodies.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .buffer_command import buffer
from .enroll_command import enroll

if TYPE_CHECKING:
    from .infer import Question

CONFIG = click.option(
    "-c", "--config", "config_path", type=click.Path(dir_okay=False, path_type=Path), default="agent.toml",
    envvar="EDGEML_AGENT", show_default=True, help="The device's settings.",
)  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _row_count(_context: click.Context, _option: click.Parameter, value: str) -> int | None:
    """Read a number of rows, or `all`, which is None."""
    if value == "all":
        return None
    if not value.isascii() or not value.isdecimal():
        raise click.BadParameter(f"{value!r} is neither a number nor 'all'")
    return int(value)


@click.group()
def agent() -> None:
    """Run the on-device agent and look at it."""


agent.add_command(buffer)
agent.add_command(enroll)


@agent.command("run")
@CONFIG
@click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Log lines for people or machines.",
)
def run_command(config_path: Path, log_format: str) -> None:
    """Run the agent until it is told to stop (SIGTERM or Ctrl-C).

    \b
    Example, with the kit that `edgeml fleet device add` wrote:
        edgeml agent run -c cam-1/agent.toml
    """
    from .config import load
    from .daemon import become

    load(config_path)
    become(config_path, log_format)


@agent.command()
@CONFIG
@JSON
def status(config_path: Path, as_json: bool) -> None:
    """Say what is installed and where the update machine stands, from the device's disk.

    \b
    Example:
        edgeml agent status -c cam-1/agent.toml --json
    """
    from .config import load
    from .status import read_status

    found = read_status(Path(load(config_path).storage))
    if as_json:
        click.echo(found.to_json())
        return
    for line in found.lines():
        click.echo(line)


@agent.command()
@CONFIG
@JSON
def doctor(config_path: Path, as_json: bool) -> None:
    """Check this device: settings, files, storage, clock, runtimes, identity, broker and server. Changes nothing.

    Each thing that is wrong comes with what to do next; the exit code is 1 then.

    \b
    Example:
        edgeml agent doctor -c cam-1/agent.toml
        edgeml agent doctor -c cam-1/agent.toml --json
    """
    from edgeml.clock import SystemClock
    from edgeml.doctor import tell

    from .checkup import examine

    findings = examine(config_path, SystemClock().now_ms())
    tell(findings, as_json=as_json)
    if not all(finding.good for finding in findings):
        click.get_current_context().exit(1)


@agent.command()
@click.argument("kits", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--images",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="field.npz with field_x, field_y.",
)
@click.option(
    "--scenario",
    type=click.Path(dir_okay=False, path_type=Path),
    help="JSON file, read again when it changes.",
)
def simulate(kits: Path, images: Path, scenario: Path | None) -> None:
    """Run every device kit under KITS as a simulated device, all in this process.

    The update machine, journal, link, telemetry, signatures and models are the real ones; see the documentation for
    what is simulated.

    \b
    Example:
        edgeml agent simulate kits/ --images field.npz
    """
    from .logs import set_up
    from .simulation.crowd import run

    set_up("text")
    run(sorted(kits.glob("*/agent.toml")), images, kits / "shared", scenario)


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--url",
    default="http://127.0.0.1:8090",
    show_default=True,
    help="The agent's endpoint; unix:///PATH for a unix socket.",
)
@click.option("--model", help="Model to ask; needed only if the agent serves several.")
@click.option(
    "--wait",
    "wait_s",
    default=0.0,
    metavar="SECONDS",
    show_default=True,
    help="How long to wait for an agent that starts, or for its model.",
)
@click.option(
    "--rows",
    callback=_row_count,
    metavar="N",
    default="20",
    show_default=True,
    help="How many answers to print, or `all`.",
)
@click.option(
    "--batch",
    is_flag=True,
    help="Many samples: several clients, figures at the end, and a bad sample is not the end. DATA may be a directory or .csv too.",
)
@click.option(
    "--clients",
    type=click.IntRange(1, 32),
    default=2,
    show_default=True,
    help="With --batch: how many ask at once.",
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="With --batch: a file for the answers, a line of JSON a sample.",
)
@JSON
def infer(data: Path, url: str, model: str | None, **options: Any) -> None:
    """Ask a running agent about every sample in DATA.

    DATA is an .npz, .npy or .json file with arrays. With --batch it may also be a .csv file with a sample a row, or a
    directory of .npy, .npz, .json, .bin (raw bytes) or image files.

    \b
    Example:
        edgeml infer field.npz --url http://127.0.0.1:8090
        edgeml infer field.npz --wait 30 --rows all
        edgeml infer field.npz --url unix:///run/edgeml/agent.sock
        edgeml infer photos/ --batch --clients 4 --out answers.jsonl
    """
    import msgspec

    from .infer import Question, ask, tell

    question = Question(data, url, model, options["wait_s"])
    if options["batch"]:
        _infer_batch(question, options["clients"], options["out"], as_json=options["as_json"])
        return
    report = ask(question)
    if options["as_json"]:
        click.echo(msgspec.json.encode(report))
    else:
        tell(report, options["rows"])


def _infer_batch(question: Question, clients: int, out: Path | None, *, as_json: bool) -> None:
    import msgspec

    from edgeml.errors import BackendError

    from .infer_batch import Batch, run, tell

    report = run(Batch(question, clients, out))
    if as_json:
        click.echo(msgspec.json.encode(report))
    else:
        tell(report)
    if report.failed:
        raise BackendError(f"{report.failed} of {report.samples} samples got no answer")


@click.command()
@click.argument("bundle", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--to",
    required=True,
    metavar="DIR|HOST:DIR|unix:SOCKET",
    help="The device's storage directory, here or over ssh; or the unix socket of a running agent.",
)
@click.option(
    "--fleet", "fleet_directory", type=click.Path(file_okay=False, path_type=Path), default="fleet-home", envvar="EDGEML_FLEET",
    show_default=True, help="The fleet directory whose signed metadata cover the bundle.",
)  # fmt: skip
@click.option(
    "--anchor", "anchor_path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
    help="Root metadata that a device without any is to trust (default: the fleet's newest).",
)  # fmt: skip
@click.option(
    "--ssh", default="ssh", show_default=True, help="The command that is ssh, with its options, for HOST:DIR."
)
@JSON
def flash(
    bundle: Path, to: str, fleet_directory: Path, anchor_path: Path | None, ssh: str, *, as_json: bool
) -> None:
    """Put a signed release on a device without any network, over ssh, or into a running agent.

    The device checks signatures, digest, profile and release counter with the same code that it uses online, when it
    next starts (or within seconds if it runs). What came of it the fleet hears when it next sees the device. A device
    keeps the trust anchor that it was given first, whichever of the fleet's roots that is.

    \b
    Example, with the device's card mounted, over ssh, and on the device itself:
        edgeml flash digits-1.0.0-onnx-int8-s8s8.edgeml --to /mnt/card/edgeml/state
        edgeml flash digits-1.0.0-onnx-int8-s8s8.edgeml --to edgeml@cam-1:/var/lib/edgeml-agent
        edgeml flash digits-1.0.0-onnx-int8-s8s8.edgeml --to unix:///run/edgeml/agent.sock
    """
    from edgeml.roots import read_named

    from .flash import as_json as flashed_json
    from .flash import flash as put
    from .flash_agent import flash_agent
    from .flash_ssh import Login, flash_ssh
    from .listener import UNIX, socket_path

    now_ms, repository = time.time_ns() // 1_000_000, fleet_directory / "repository"
    anchor = read_named(anchor_path) if anchor_path is not None else None
    login = None if Path(to).exists() else Login.parse(to, ssh)
    if to.startswith(UNIX):
        flashed = flash_agent(bundle, socket_path(to), repository, now_ms, anchor)
    elif login is not None:
        flashed = flash_ssh(bundle, login, repository, now_ms, anchor)
    else:
        flashed = put(bundle, Path(to), repository, now_ms, anchor)
    if as_json:
        click.echo(flashed_json(flashed))
        return
    click.echo(f"{flashed.target.facts.release} ({flashed.target.path}) is in {flashed.inbox}")
    if flashed.root_installed:
        click.echo("The storage had no trust anchor and was given this fleet's.")
    click.echo("The device verifies and tries it when it next starts: edgeml agent status")
