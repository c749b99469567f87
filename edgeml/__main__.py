"""Begins the `edgeml` program, also as `python -m edgeml`.

Imports nothing but what guards the rest: loading the command line takes long enough for a Ctrl-C.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from .program import run

if TYPE_CHECKING:
    import click


def main() -> NoReturn:
    """Entry point of the `edgeml` program."""
    run(_load, "edgeml")


def _load() -> click.Command:
    from .cli import edgeml

    return edgeml


if __name__ == "__main__":
    main()
