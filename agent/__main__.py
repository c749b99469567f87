"""Begins the `edgeml-agent` program, which devices start; `edgeml agent` does the same where all of edgeml is installed.

Imports nothing but what guards the rest, as `edgeml.__main__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from edgeml.program import run

if TYPE_CHECKING:
    import click


def main() -> NoReturn:
    """Entry point of the `edgeml-agent` program."""
    run(_load, "edgeml-agent")


def _load() -> click.Command:
    from .cli import agent

    return agent


if __name__ == "__main__":
    main()
