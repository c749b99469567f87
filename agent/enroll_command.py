"""`edgeml agent enroll`: the device makes itself known to a fleet.

Decides how the command is written and answered. What happens is decided in `enrolment`.
"""

from __future__ import annotations

import socket
from pathlib import Path

import click


@click.command()
@click.argument("invitation")
@click.option(
    "--device", default="", metavar="NAME", help="Its name in the fleet (default: this machine's name)."
)
@click.option(
    "--profile", default="", metavar="NAME", help="Its kind of hardware; needed only without a claim token."
)
@click.option(
    "--out",
    "directory",
    default=".",
    show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where to write agent.toml and the identity.",
)
@click.option(
    "--root",
    "storage",
    default="state",
    show_default=True,
    metavar="DIR",
    help="Where the agent keeps its state; relative to --out.",
)
@click.option(
    "--listen",
    default="127.0.0.1:8090",
    show_default=True,
    metavar="HOST:PORT",
    help="Its endpoint for local inference, which needs the [serve] extra; '' for none.",
)
@click.option(
    "--wait",
    "wait_s",
    default=600.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an operator, without a claim token.",
)
def enroll(
    invitation: str, device: str, *, profile: str, directory: Path, wait_s: float, **options: str
) -> None:
    """Make this machine a device of the fleet that INVITATION is of. Its private key is made here and never leaves.

    INVITATION is `host:port#token#fingerprint`, as `edgeml fleet claim create` printed it; or, to wait for an
    operator who compares fingerprints, `host:port#fingerprint`. Interrupted, the same command goes on. An identity that
    has expired is replaced by the same command with a new claim.

    \b
    Example:
        edgeml agent enroll 'fleet.lan:18443#TOKEN#FINGERPRINT' --device cam-1 --out /etc/edgeml
        edgeml agent enroll 'fleet.lan:18443#FINGERPRINT' --device cam-1 --profile raspberry-pi-4
    """
    from edgeml.identity import parse_invitation

    from .enrolment import Wish, enrol

    name = device or socket.gethostname().partition(".")[0].lower()
    wish = Wish(parse_invitation(invitation), name, profile, directory, options["storage"], options["listen"])
    done = enrol(wish, click.echo, wait_s)
    click.echo(f"enrolled {done.device}; start it with: edgeml agent run -c {done.settings_path}")
