"""How the latencies of a report compare, in words for people: which were measured in turns with the others.

Decides the mark of those that were not, and the note that explains it. Which are measured so is `turns`' business.
"""

from __future__ import annotations

from dataclasses import dataclass

from .report import Report, RunRow


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is to be said of one report's latencies. `note` is empty where each run has but its own figure."""

    note: str = ""

    def latency(self, run: RunRow) -> str:
        """A run's latency; with a ~ where others were measured in turns and this one was not."""
        if run.latency_ms is None:
            return "-"
        return f"{'~' if self.note and run.latency_turns_ms is None else ''}{run.latency_ms:.3f} ms"


def comparison_of(report: Report) -> Comparison:
    """Look at all runs of a report that have a latency."""
    ran = [one for row in report.candidates for one in row.runs if one.latency_ms is not None]
    turns = [one.latency_turns_ms is not None for one in ran]
    if not any(turns):
        return Comparison()
    return Comparison(
        "latencies in turns; " if all(turns) else "latencies in turns, but for those with a ~; "
    )
