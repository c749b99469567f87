"""Runs a click command as a program.

Decides how an error is shown: one line that says what is wrong, one that says what to do, and the error's exit code.
Apart from `edgeml.cli`, so that the device's program need not look for the commands of other rooms (3 MB).
"""

from __future__ import annotations

import os
import sys
from typing import Any, Final

import click

from .errors import EdgemlError

INTERRUPTED_EXIT_CODE: Final = 130
BROKEN_PIPE_EXIT_CODE: Final = 141


def show(error: EdgemlError) -> None:
    """Print an error for a person."""
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"hint: {error.hint}", err=True)


def run(command: click.Command, name: str) -> None:
    """Run a click command as a program: errors become lines and exit codes, never tracebacks."""
    try:
        code: Any = command.main(prog_name=name, standalone_mode=False)
    except EdgemlError as error:
        show(error)
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(INTERRUPTED_EXIT_CODE)
    except BrokenPipeError:
        # The reader of our output went away; nothing is left to say, also not by the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE_EXIT_CODE)
    sys.exit(code if isinstance(code, int) else 0)
