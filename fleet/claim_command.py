"""`edgeml fleet claim`: invitations for devices that enrol themselves.

Decides how the commands are written and answered. What a claim is worth is decided in `admission`.
"""

from __future__ import annotations

import click

from .options import in_fleet, open_fleet


@click.group()
def claim() -> None:
    """Claims: invitations with which a device enrols itself, once.

    \b
    Example:
        edgeml fleet claim create --profile raspberry-pi-4
    """


@claim.command()
@click.option(
    "--profile",
    required=True,
    help="Kind of hardware of the device (edgeml profiles list), or a path to your own .toml.",
)
@click.option(
    "--device",
    default="",
    metavar="NAME",
    help="Only for the device of this name; also lets one that exists enrol again.",
)
@click.option(
    "--expires",
    default="1d",
    show_default=True,
    metavar="SPAN",
    help="How long it may be used: 30m, 12h, 7d.",
)
@in_fleet
def create(context: click.Context, directory: str | None, profile: str, device: str, *, expires: str) -> None:
    """Make a claim and print it, this once: `host:port#token#fingerprint`.

    The fleet keeps only a hash of it. Give it to `edgeml agent enroll` on the device.

    \b
    Example:
        edgeml fleet claim create --profile raspberry-pi-4 --expires 2h
        edgeml fleet claim create --profile raspberry-pi-4 --device cam-1
    \f

    Raises:
        ConfigError: The profile, name or span is not valid, or the fleet has no TLS listener.
    """
    from edgeml.clock import SystemClock
    from edgeml.profile import load

    from . import authority
    from .admission import Admission
    from .durations import parse_duration_s

    home, config, store = open_fleet(context, directory)
    now_ms, life_ms = SystemClock().now_ms(), int(parse_duration_s(expires) * 1000)
    fleet = Admission(home, config, store, authority.ensure(home.authority, now_ms))
    click.echo(fleet.invite(load(profile).name, device, life_ms, now_ms).text)
