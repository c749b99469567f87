"""How the demo tells its story: lines, progress bars and a table for people, or one JSON document for machines.

Decides the looks only; every figure comes from the story.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table


class Bar(Protocol):
    """A progress bar that is shown."""

    def at(self, done: int, total: int, note: str = "") -> None:
        """Move it."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table at the end."""

    what: str
    figure: str
    good: bool | None = None
    """Whether it came out as it should; None for a mere figure."""


class Telling:
    """Tells the story on a terminal, or keeps quiet."""

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(highlight=False, emoji=False, quiet=quiet)
        self._started = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the story began."""
        return time.monotonic() - self._started

    def chapter(self, text: str) -> None:
        """Begin a part of the story."""
        self._console.print(f"\n{text}", style="bold", markup=False)

    def say(self, text: str) -> None:
        """Tell one line."""
        self._console.print(f"  {text}", markup=False)

    @contextmanager
    def waiting(self, text: str) -> Iterator[Bar]:
        """Show a bar while something takes time."""
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(30),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(text, total=None, note="")

            class _Bar:
                def at(self, done: int, total: int, note: str = "") -> None:
                    progress.update(task, completed=done, total=total, note=note or f"{done}/{total}")

            yield _Bar()

    def table(self, rows: tuple[Row, ...]) -> None:
        """End with a table."""
        table = Table(title="What happened", title_justify="left", show_header=False)
        table.add_column()
        table.add_column()
        table.add_column()
        for row in rows:
            mark = (
                ""
                if row.good is None
                else "[green]as it should[/green]"
                if row.good
                else "[red]NOT as it should[/red]"
            )
            table.add_row(row.what, row.figure, mark)
        self._console.print()
        self._console.print(table)
