"""`edgeml agent enroll`: the device makes itself known to a fleet.

Decides how the command is written and answered. What happens is decided in `enrolment`.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Final

import click

CLAIM_VARIABLE: Final = "EDGEML_CLAIM"
CLAIM_CHARACTERS_MAX: Final = 4096


@click.command()
@click.argument("invitation", default="")
@click.option(
    "--claim-file",
    default="",
    metavar="FILE",
    type=click.Path(allow_dash=True, dir_okay=False),
    help="File with the invitation, or with its token only; - for standard input.",
)
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
    operator who compares fingerprints, `host:port#fingerprint`. A command line can be read by everybody on this
    machine: give the invitation, or its token, by --claim-file or in the environment variable EDGEML_CLAIM where
    others work, too. Interrupted, the same command goes on. With a new claim for its name, a device gets a new key and
    certificate; the old ones stay until then.

    \b
    Example:
        edgeml agent enroll --claim-file claim.txt --device cam-1 --out /etc/edgeml
        edgeml agent enroll 'fleet.lan:18443#TOKEN#FINGERPRINT' --device cam-1 --out /etc/edgeml
        edgeml agent enroll 'fleet.lan:18443#FINGERPRINT' --device cam-1 --profile raspberry-pi-4
    """
    from edgeml.identity import invitation_of

    from .enrolment import Wish, enrol

    invited = invitation_of(
        invitation, _read_claim(options["claim_file"], with_token=invitation.count("#") > 1)
    )
    name = device or socket.gethostname().partition(".")[0].lower()
    wish = Wish(invited, name, profile, directory, options["storage"], options["listen"])
    done = enrol(wish, click.echo, wait_s)
    click.echo(f"enrolled {done.device}; start it with: edgeml agent run -c {done.settings_path}")


def _read_claim(path: str, *, with_token: bool) -> str:
    """Read the claim from its file, else from the environment; a token on the command line outranks the latter.

    Raises:
        ConfigError: The file cannot be read, or is empty.
    """
    from edgeml.errors import ConfigError

    if not path:
        return "" if with_token else os.environ.get(CLAIM_VARIABLE, "")
    try:
        with click.open_file(path, errors="replace") as file:
            claim = str(file.read(CLAIM_CHARACTERS_MAX)).strip()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check --claim-file") from error
    if not claim:
        raise ConfigError(
            f"there is no claim in {'standard input' if path == '-' else path}",
            hint="it holds what `edgeml fleet claim create` printed",
        )
    return claim
