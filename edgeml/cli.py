"""The root command.

Decides how `edgeml` finds the commands of the rooms (entry points, so that the hallway imports no room) and how an
error is shown: one line that says what is wrong, one that says what to do, and the error's exit code. Loading a room's
command loads none of its heavy libraries.
"""

from __future__ import annotations

import logging
from importlib import metadata, util
from typing import Final

import click

from . import __version__
from .errors import EdgemlError

GROUP: Final = "edgeml.commands"
NEEDS: Final = {
    "agent": ("paho", "psutil", "tuf"),
    "infer": ("numpy",),
    "measure": ("numpy",),
    "flash": ("tuf",),
    "convert": ("torch", "onnx", "onnxruntime"),
    "package": ("onnx", "onnxruntime"),
    "check": ("numpy", "rich"),
    "diff": ("onnx", "rich"),
    "fit": ("onnx", "rich"),
    "calibrate": ("onnx",),
    "sample": ("torch", "sklearn"),
    "keys": ("tuf", "cryptography"),
    "fleet": ("sqlalchemy", "paho", "tuf"),
    "demo": ("sqlalchemy", "torch", "sklearn", "aiomqtt"),
}
"""What must be importable for a command to work here; looked up without importing it."""
EXTRAS: Final = {
    "agent": "agent", "infer": "agent", "measure": "agent", "flash": "agent", "convert": "converters", "package": "converters",
    "check": "converters", "diff": "converters", "fit": "converters", "calibrate": "converters",
    "sample": "converters", "keys": "fleet", "fleet": "fleet", "demo": "agent,serve,converters,fleet",
}  # fmt: skip


class Rooms(click.Group):
    """A group whose commands come from the rooms that are installed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of the built-in commands and of every room's."""
        return sorted(
            {*super().list_commands(ctx), *(entry.name for entry in metadata.entry_points(group=GROUP))}
        )

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Find a command, loading its room's command line only."""
        command = super().get_command(ctx, cmd_name)
        if command is None:
            entry = next(iter(metadata.entry_points(group=GROUP, name=cmd_name)), None)
            if entry is None:
                return None
            command = entry.load()
        missing = [name for name in NEEDS.get(cmd_name, ()) if util.find_spec(name) is None]
        return _not_installed(command, cmd_name, missing) if missing else command


def _not_installed(command: click.Command, name: str, missing: list[str]) -> click.Command:
    """Stand in for a command whose libraries are not on this machine."""
    fix = f"pip install 'edgeml-fleet[{EXTRAS[name]}]'"

    @click.command(
        name, add_help_option=False, short_help=f"(not installed here: {fix})",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )  # fmt: skip
    def stand_in() -> None:
        message = f"'edgeml {name}' needs {', '.join(missing)}, not installed here"
        error = EdgemlError(message, hint=fix)
        error.exit_code = 2  # type: ignore[misc]  # this one error is the user's to fix
        raise error

    stand_in.help = command.help
    return stand_in


@click.group(cls=Rooms, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="edgeml")
@click.option("-v", "--verbose", count=True, help="Say more: -v what is done, -vv every detail.")
def edgeml(verbose: int) -> None:
    """Shrink models for edge devices, push them in signed waves, keep them honest in the field.

    \b
    Watch the whole way once, on this machine:
        edgeml demo
    Shrink a model for a Raspberry Pi 4:
        edgeml convert digits.py:model --data data.npz --profile raspberry-pi-4 --name digits --version 1.0.0
    Sign it and push it in waves:
        edgeml keys init && edgeml fleet publish digits-1.0.0-onnx-int8-s8s8.edgeml
        edgeml fleet serve
        edgeml fleet rollout start digits@1.0.0
    """
    level = {0: logging.WARNING, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s")


def _register() -> None:
    from .doctor import doctor
    from .measure_command import measure
    from .profiles_command import profiles

    edgeml.add_command(profiles)
    edgeml.add_command(doctor)
    edgeml.add_command(measure)


@edgeml.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print shell completion code.

    \b
    Example:
        edgeml completion bash >> ~/.bashrc
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(edgeml, {}, "edgeml", "_EDGEML_COMPLETE").source())


_register()
