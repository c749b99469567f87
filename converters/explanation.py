"""What is said of a conversion when it has ended, whether or not something was chosen.

Decides which layers are shown, and the answers to what users ask most. How the page looks is `explain/`'s business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeml import atomic
from edgeml.ids import release_id
from edgeml.manifest import RuntimeFamily
from edgeml.profile import HOST, DeviceRuntime, load

from .candidate import Failed
from .explain import why
from .explain.conversion_page import Shown, page_of
from .explain.report_page import render
from .explain.sensitivity import LayerSensitivity
from .explain.why import WHICH_LAYER, WHY_SLOW, which_layer, why_slow
from .order import ConversionOrder
from .recipe import Recipe, StaticInteger
from .report import Answer, LayerRow, Report, View, candidate_rows
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
    """Explain a conversion, and write its page.

    Raises:
        StorageError: The disk refused the page.
    """
    statics = [one for one in found if _is_static(one)]
    # Of ONNX files the page has pictures of calibration ranges as well.
    statics.sort(key=lambda one: one.candidate.recipe.family is not RuntimeFamily.ONNX)
    static = statics[0] if statics else None
    layers = bench.sensitivity(static.candidate.recipe) if static else ()
    release = release_id(order.release.model, order.release.version)
    report = Report(
        release=release,
        source=Path(order.source).name,
        host=next((one.result.host for one in found if one.result is not None), ""),
        metric=floor.metric,
        direction=floor.direction.value,
        baseline=floor.baseline,
        max_drop=floor.max_drop,
        samples=len(bench.verifier.samples),
        candidates=candidate_rows(
            [one.candidate for one in found], views, _notes(bench, found), bench.turns_ms
        ),
        layers=tuple(_row(one) for one in layers),
        answers=_answers(bench, found, static, layers, floor),
    )
    shows_ranges = layers and static and static.candidate.recipe.family is RuntimeFamily.ONNX
    observed = bench.observed(static.candidate.recipe) if shows_ranges and static else ()
    wanted = {runtime for profile in order.profiles for runtime in profile.runtimes}
    reached = {venue.runtime for venues in bench.venues.values() for venue in venues}
    unreachable = tuple(runtime.value for runtime in DeviceRuntime if runtime in wanted - reached)
    page = order.out / f"{order.release.model}-{order.release.version}-report.html"
    atomic.write_bytes(page, render(page_of(Shown(report, floor, observed, unreachable))), mode=0o644)
    return Explained(report, page)


def _is_static(one: Verified) -> bool:
    recipe = one.candidate.recipe
    return isinstance(recipe.compression, StaticInteger) and not recipe.training and bool(one.model)


def _answers(
    bench: Workbench,
    found: Sequence[Verified],
    static: Verified | None,
    layers: Sequence[LayerSensitivity],
    floor: Floor,
) -> tuple[Answer, ...]:
    before, after = _pair(bench, found, static)
    here = load(HOST)
    slow = why_slow(before, after, frozenset(here.extensions), int(here.channel_block.value))
    return (
        Answer(
            question=WHICH_LAYER,
            answer="\n".join((*which_layer(layers, floor, after), *bench.unscanned.values())),
        ),
        Answer(question=WHY_SLOW, answer="\n".join((*slow, *filter(None, [bench.uncompared])))),
    )


def _pair(
    bench: Workbench, found: Sequence[Verified], static: Verified | None
) -> tuple[why.Shown | None, why.Shown | None]:
    """The float candidate that an int8 one was made of, and that one, as one runtime has them both."""
    if static is None:
        return None, None
    export = Recipe(static.candidate.recipe.export)
    plain = next((one for one in found if one.candidate.recipe == export), None)
    runs = sorted(static.candidate.runs, key=lambda run: isinstance(run.outcome, Failed))
    if plain is None or not runs:
        return None, None
    return _shown(bench, plain, runs[0].runtime), _shown(bench, static, runs[0].runtime)


def _shown(bench: Workbench, one: Verified, runtime: DeviceRuntime) -> why.Shown | None:
    run = next((run for run in one.candidate.runs if run.runtime is runtime), None)
    if run is None:
        return None
    recipe = one.candidate.recipe
    return why.Shown(recipe, bench.graph(one), run, bench.turns_ms(recipe, runtime))


def _notes(bench: Workbench, found: Sequence[Verified]) -> dict[Recipe, str]:
    notes = {one.candidate.recipe: bench.workshop.note(one.candidate.recipe) for one in found if one.model}
    return {recipe: note for recipe, note in notes.items() if note}


def _row(one: LayerSensitivity) -> LayerRow:
    return LayerRow(
        layer=one.layer, operator=one.operator, parameters=one.parameters, drop=one.metric_drop,
        agreement=one.agreement, sqnr_db=one.sqnr_db,
    )  # fmt: skip
