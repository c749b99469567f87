"""What is said of a conversion when it has ended, whether or not something was chosen.

Decides which layers are shown, and the answers to what users ask most. How the page looks is `explain/`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeml.ids import release_id

from .explain.sensitivity import LayerSensitivity
from .order import ConversionOrder
from .recipe import Recipe, StaticInteger
from .report import LayerRow, Report, View, candidate_rows
from .select import Floor
from .verify import Verified
from .workbench import Workbench


@dataclass(frozen=True, slots=True)
class Explained:
    """The record, and the page where it stands with pictures."""

    report: Report
    page: Path


def explain(
    order: ConversionOrder, bench: Workbench, found: Sequence[Verified], views: Sequence[View], floor: Floor
) -> Explained:
    """Explain a conversion."""
    layers = _layers(bench, found)
    host = next((one.result.host for one in found if one.result is not None), "")
    report = Report(
        release=release_id(order.release.model, order.release.version),
        source=Path(order.source).name,
        host=host,
        metric=floor.metric,
        direction=floor.direction.value,
        baseline=floor.baseline,
        max_drop=floor.max_drop,
        samples=len(bench.verifier.samples),
        candidates=candidate_rows([one.candidate for one in found], views, _notes(bench, found)),
        layers=tuple(_row(one) for one in layers),
    )
    return Explained(report, order.out)


def _layers(bench: Workbench, found: Sequence[Verified]) -> tuple[LayerSensitivity, ...]:
    """Scan the first static recipe that was made."""
    for one in found:
        recipe = one.candidate.recipe
        if isinstance(recipe.compression, StaticInteger) and not recipe.training and one.model:
            return bench.sensitivity(recipe)
    return ()


def _notes(bench: Workbench, found: Sequence[Verified]) -> dict[Recipe, str]:
    notes = {one.candidate.recipe: bench.workshop.note(one.candidate.recipe) for one in found if one.model}
    return {recipe: note for recipe, note in notes.items() if note}


def _row(one: LayerSensitivity) -> LayerRow:
    return LayerRow(
        layer=one.layer, operator=one.operator, parameters=one.parameters, drop=one.metric_drop,
        agreement=one.agreement, sqnr_db=one.sqnr_db,
    )  # fmt: skip
