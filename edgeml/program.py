"""Runs a command as a program.

Decides how an error is shown: one line that says what is wrong, one that says what to do, and the error's exit code;
and that a Ctrl-C which comes while the program is loaded or ends just ends it.
Loads click only for click's commands: the device's daemon comes through here without it (4 MB).
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NoReturn

from .errors import EdgemlError

if TYPE_CHECKING:
    import click

INTERRUPTED_EXIT_CODE: Final = 130
BROKEN_PIPE_EXIT_CODE: Final = 141


def show(error: EdgemlError) -> None:
    """Print an error for a person."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def guarded(main: Callable[[], object]) -> NoReturn:
    """Call `main` and exit: errors become lines and exit codes, never tracebacks."""
    try:
        try:
            code = main()
        finally:
            # What is left is the interpreter's own ending (threads, caches of libraries): nothing there is worth
            # finishing, and a KeyboardInterrupt raised in it could only be shown as a traceback.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except EdgemlError as error:
        show(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED_EXIT_CODE)
    except BrokenPipeError:
        # The reader of our output went away; nothing is left to say, also not by the interpreter's last flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(BROKEN_PIPE_EXIT_CODE)
    sys.exit(code if isinstance(code, int) else 0)


def run(load: Callable[[], click.Command], name: str) -> NoReturn:
    """Load a click command and run it as a program; a Ctrl-C while it is loaded ends it like any other."""

    def main() -> object:
        import click

        command = load()
        try:
            return command.main(prog_name=name, standalone_mode=False)
        except click.ClickException as error:
            error.show()
            return error.exit_code
        except click.Abort as error:
            raise KeyboardInterrupt from error

    guarded(main)
