"""`edgeml fleet device`: add, list and remove devices.

Decides how the commands are written and answered. What happens is decided in `enroll`.
"""

from __future__ import annotations

from pathlib import Path

import click

from .options import in_fleet, json_option, open_fleet, print_json


@click.group()
def device() -> None:
    """Devices: who belongs to the fleet.

    \b
    Example:
        edgeml fleet device add cam-1 --profile raspberry-pi-4 --out cam-1-kit
        edgeml fleet device list
    """


@device.command()
@click.argument("name")
@click.option(
    "--profile",
    required=True,
    help="Its kind of hardware (edgeml profiles list), or a path to your own .toml.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), metavar="DIR", help="Where to write its kit."
)
@click.option(
    "--root",
    "storage",
    metavar="DIR",
    default="state",
    help="Where the agent keeps its state on the device (default: in the kit).",
)
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:8090",
    show_default=True,
    help="Its endpoint for local inference, which needs the [serve] extra there; '' for none.",
)
@in_fleet
def add(
    context: click.Context, directory: str | None, name: str, *, profile: str, out: Path, **options: str
) -> None:
    """Enrol a device and write its kit: settings, its own token, the trust anchor.

    Copy the kit to the device and run `edgeml-agent run` there. The token is written nowhere else.

    \b
    Example:
        edgeml fleet device add cam-1 --profile raspberry-pi-4 --out cam-1-kit
        edgeml fleet device add cam-2 --profile raspberry-pi-4 --out cam-2-kit --listen ''
    \f

    Raises:
        ConfigError: The name or profile is not valid, the name is taken, or the kit's directory is not empty.
    """
    from edgeml.clock import SystemClock
    from edgeml.profile import load

    from . import enroll

    home, config, store = open_fleet(context, directory)
    new = enroll.NewDevice(name, load(profile).name, out, options["storage"], options["listen"])
    enroll.add(home, config, store, new, SystemClock().now_ms())
    click.echo(f"added {name}; its kit is in {out}")


@device.command("list")
@json_option
@in_fleet
def list_(context: click.Context, directory: str | None, form: str | None) -> None:
    """List the devices, and what each runs: one line a device and model.

    \b
    Example:
        edgeml fleet device list
        edgeml fleet device list --json
    \f

    Raises:
        ConfigError: There is no fleet here.
    """
    from edgeml.clock import SystemClock

    from . import overview

    _home, _config, store = open_fleet(context, directory)
    view = overview.status(store, SystemClock().now_ms())
    if form == "json":
        print_json(view.devices)
        return
    from . import tables

    tables.show(tables.devices_table(view.devices, view.at_ms))


@device.command()
@json_option
@in_fleet
def pending(context: click.Context, directory: str | None, form: str | None) -> None:
    """Show the devices that ask to be enrolled without a claim, with the fingerprints of their keys.

    \b
    Example:
        edgeml fleet device pending
        edgeml fleet device pending --json
    \f

    Raises:
        ConfigError: There is no fleet here.
    """
    from . import identities

    _home, _config, store = open_fleet(context, directory)
    with store.read() as connection:
        waiting = [one for one in identities.load_requests(connection) if one.standing == "pending"]
    if form == "json":
        print_json(waiting)
        return
    for one in waiting:
        click.echo(f"{one.device}  {one.profile}  {one.key_fingerprint}")
    if not waiting:
        click.echo("no device waits")


@device.command()
@click.argument("which", metavar="NAME|FINGERPRINT")
@in_fleet
def approve(context: click.Context, directory: str | None, which: str) -> None:
    """Let a device in that waits. Compare the fingerprint with the one that `edgeml agent enroll` prints there.

    \b
    Example:
        edgeml fleet device approve cam-1
        edgeml fleet device approve 3f9a61c2
    \f

    Raises:
        ConfigError: None waits under that name, several do, or the name is taken.
    """
    from . import admission, identities

    _home, _config, store = open_fleet(context, directory)
    decided = admission.decide(store, which, identities.APPROVED)
    click.echo(f"approved {decided.device}, key {decided.key_fingerprint}")


@device.command()
@click.argument("which", metavar="NAME|FINGERPRINT")
@in_fleet
def deny(context: click.Context, directory: str | None, which: str) -> None:
    """Refuse a device that waits.

    \b
    Example:
        edgeml fleet device deny cam-1
    \f

    Raises:
        ConfigError: None waits under that name, or several do.
    """
    from . import admission

    _home, _config, store = open_fleet(context, directory)
    decided = admission.decide(store, which, "denied")
    click.echo(f"denied {decided.device}, key {decided.key_fingerprint}")


@device.command()
@click.argument("name")
@in_fleet
def remove(context: click.Context, directory: str | None, name: str) -> None:
    """Forget a device: its token and certificates are refused from now on, its telemetry stays.

    \b
    Example:
        edgeml fleet device remove cam-1
    \f

    Raises:
        ConfigError: There is no such device.
    """
    from edgeml.clock import SystemClock

    from . import enroll

    home, _config, store = open_fleet(context, directory)
    enroll.remove(home, store, name, SystemClock().now_ms())
    click.echo(f"removed {name}")
