"""What the fleet's commands have in common: `--dir`, `--json`, and opening the fleet.

Decides where a command finds its fleet: its own `--dir`, the group's, EDGEML_FLEET, `./fleet-home`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from .config import DEFAULT_DIRECTORY, DIRECTORY_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable

    from .config import FleetConfig, FleetHome
    from .store import Store

DIRECTORY_HELP: Final = f"The fleet's directory (default: ${DIRECTORY_VARIABLE}, or ./{DEFAULT_DIRECTORY})."
NOT_RUNNING: Final = "the controller is not running; this takes effect when `edgeml fleet serve` runs"

directory_option = click.option("--dir", "directory", metavar="DIR", help=DIRECTORY_HELP)
json_option = click.option("--json", "form", flag_value="json", help="Print it as JSON.")


def in_fleet(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command `--dir` and the click context, in which the group's own `--dir` is found."""
    return directory_option(click.pass_context(command))


def home_of(context: click.Context, directory: str | None) -> FleetHome:
    """Find the fleet's directory for a command."""
    from .config import find_home

    return find_home(directory or context.obj)


def open_fleet(context: click.Context, directory: str | None) -> tuple[FleetHome, FleetConfig, Store]:
    """Open the fleet that a command is about.

    Raises:
        ConfigError: There is none.
        StateError: Its database is of a newer edgeml.
        StorageError: Its database cannot be opened.
    """
    from .config import database_url, load
    from .store import Store

    home = home_of(context, directory)
    config = load(home)
    return home, config, Store(database_url(home, config))


def controller_runs(home: FleetHome) -> bool:
    """Tell whether a controller works on this fleet now."""
    from .locks import CONTROLLER, is_held

    return is_held(home, CONTROLLER)


def mention_controller(home: FleetHome) -> None:
    """Say so if nobody is there to carry out what was just asked for."""
    if not controller_runs(home):
        click.echo(NOT_RUNNING, err=True)


def print_json(content: Any) -> None:
    """Print a value as JSON, for programs."""
    click.echo(msgspec.json.format(msgspec.json.encode(content), indent=2).decode())
