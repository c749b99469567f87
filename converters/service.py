"""Converts a model: load, search, select, explain, bundle.

Decides the order of these steps and what is refused before the expensive ones begin. Each step's own decisions are in
its own file. An interrupted conversion goes on where it was: everything that was made is kept in `work`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from edgeml.errors import ConfigError
from edgeml.ids import Digest
from edgeml.manifest import RuntimeFamily, ScoreKind, Task
from edgeml.profile import HOST

from .amounts import drop_at_least
from .array_file import Array
from .assemble import Meaning, check_shape, warn_of_earlier
from .bundling import Bundler
from .dataset import Dataset, check_classes, read_dataset
from .explanation import explain
from .metrics import ACCURACY, Direction, Evaluation, Judge, Metric, check_scores, judge_of, parse_metric
from .opset import OPSET
from .order import ConversionOrder, check_order
from .plan import Means, as_it_is, family_for, stages
from .recipe import Student
from .report import Conversion, View
from .search import Aim, OnProgress, Progress, Search
from .select import Constraints, Floor, Preference, nothing_left, select
from .sources.load import load
from .sources.source import ModelFile, Source
from .sources.source_name import parse_source
from .steps.student import load_student
from .store import Store, default_folder
from .venues import venues_for
from .verify import Verified, Verifier
from .workbench import Workbench
from .workshop import Workshop, fingerprint_of

OnRefusal = Callable[[Conversion], None]

REPEATED_FRACTION: Final = 1e-3
"""Of the answers' range: how far those to the same samples may lie apart. Threads add up floats in any order."""


def convert(
    order: ConversionOrder,
    on_progress: OnProgress = lambda _: None,
    on_refusal: OnRefusal = lambda _: None,
) -> Conversion:
    """Convert a model and write one bundle for each candidate that a profile chose, and a page that explains it.

    Args:
        order: what to do.
        on_progress: is told what is being done, for people.
        on_refusal: is given all that was found, without bundles, where a profile refused every candidate, before the error.

    Raises:
        ConfigError: The source, data or an argument cannot be used.
        IncompatibleError: A profile has no runtime for what the source can become.
        SelectionError: No candidate keeps enough accuracy for a profile. The page is written all the same.
        BudgetError: Nothing that keeps enough accuracy meets the other constraints of a profile. So is it then.
        BackendError: The exported model cannot be run.
        StorageError: The disk refused; no half-written bundle is left.
    """
    check_order(order)
    metric = parse_metric(order.metric)
    on_progress(Progress("reading data"))
    data = read_dataset(order.data)
    on_progress(Progress(f"loading {order.source}"))
    source = load(parse_source(order.source), data.calibration_x)
    meaning, judge = _judged(order, source, data, metric)
    floor = Floor(judge.metric.name, judge.baseline, order.limits.max_drop, judge.metric.direction)
    _check_resolution(data, floor)
    store = Store(order.work or default_folder())
    students = _students(order, source, data)
    aims = _aims(order, source, _means(source, data, tuple(students)), floor)
    bench = Workbench(
        Workshop(
            source,
            fingerprint_of(source, judge.original),
            data,
            store,
            "output" if meaning.task is Task.OTHER else "scores",
            students,
            lambda fraction: on_progress(Progress(f"training: {fraction:.0%}", fraction, 1.0)),
        ),
        Verifier(data.evaluation_x, judge, store),
        {
            export: venues_for([aim.profile for aim in aims if aim.export == export])
            for export in {aim.export for aim in aims}
        },
        order.measurements,
    )
    found = _searched(Search(bench, order.effort, on_progress), bench, aims, floor)
    store.trim()
    beside_bytes: dict[str, int] = {}
    while True:
        views = [_view(bench, found, aim, order.preference, beside_bytes) for aim in aims]
        on_progress(Progress("explaining"))
        explained = explain(order, bench, found, views, floor)
        for aim, view in zip(aims, views, strict=True):
            if view.selection.chosen is None:
                error = nothing_left(view.placements, aim.profile, aim.constraints)
                others = "" if len(aims) == 1 else ", and no bundle is written for the other profiles either"
                error.hint = f"{error.hint}; {explained.page} shows every candidate{others}"
                on_refusal(
                    Conversion(
                        report=explained.report, bundles=(), page=str(explained.page),
                        warnings=warn_of_earlier(order.out, order.release, ()),
                    )
                )  # fmt: skip
                raise error
        on_progress(Progress("writing bundles"))
        bundler = Bundler(order, source, data, judge, meaning, explained)
        made = bundler.make(found, views)
        # How large a bundle is, is known once it is made: what is too large is refused, and the rest judged anew.
        if not (too_large := bundler.too_large(made)):
            return bundler.write(made)
        beside_bytes = _no_less(beside_bytes, too_large)


def _no_less(known: Mapping[str, int], seen: Mapping[str, int]) -> dict[str, int]:
    """Take the most that was seen of each profile: what is refused once stays so, or the search for a fit might never end.

    >>> _no_less({"a": 5, "b": 1}, {"a": 3, "c": 2})
    {'a': 5, 'b': 1, 'c': 2}
    """
    return {**known, **{name: max(count, known.get(name, 0)) for name, count in seen.items()}}


def _view(
    bench: Workbench, found: Sequence[Verified], aim: Aim, preference: Preference, beside: Mapping[str, int]
) -> View:
    """Choose for one profile; `beside` has the bytes of bundles beside their models, by profile, where they count."""
    placements = tuple(
        replace(bench.place(one, aim.profile), beside_bytes=beside.get(aim.profile.name, 0))
        for one in found
        if aim.is_for(one)
    )
    return View(placements, select(placements, aim.profile, aim.constraints, preference))


def _searched(search: Search, bench: Workbench, aims: Sequence[Aim], floor: Floor) -> tuple[Verified, ...]:
    """Search until nothing is needed any more by latencies that were measured in turns."""
    found = search.run(aims)
    here = [aim for aim in aims if aim.profile.name == HOST]
    while here:
        search.on_progress(Progress("measuring in turns"))
        for aim in here:
            bench.measure_in_turns([one for one in found if aim.is_for(one)], floor)
        # What seemed quick enough when it was made may not be beside the others.
        more = search.run(aims)
        if len(more) == len(found):
            break
        found = more
    return found


def _judged(
    order: ConversionOrder, source: Source, data: Dataset, metric: Metric | None
) -> tuple[Meaning, Judge]:
    """Ask the source itself, and decide what its answers mean and what scores them."""
    _check_repeats(source, data.calibration_x[:2])
    answers = source.answers(data.evaluation_x, "evaluation_x")
    judge = judge_of(metric, answers, Evaluation(data.evaluation_x, data.truth))
    meaning = _meaning(order, source, data, answers)
    if meaning.task is Task.CLASSIFICATION:
        _check_rows(answers)
    check_shape(meaning, answers)
    if data.evaluation_y is not None and meaning.task is Task.CLASSIFICATION:
        check_classes(data.evaluation_y, answers.shape[1])
        check_scores(answers.astype(np.float32), meaning.scores)
    return meaning, judge


def _meaning(order: ConversionOrder, source: Source, data: Dataset, answers: Array) -> Meaning:
    several = answers.ndim == 2 and answers.shape[1] > 1
    if data.evaluation_y is None or (not several and order.metric):
        return Meaning(Task.OTHER, ScoreKind.NONE, order.labels)
    return Meaning(Task.CLASSIFICATION, source.scores or order.scores, order.labels or source.labels)


def _check_repeats(source: Source, samples: Array) -> None:
    """Refuse a model that is not a function of its samples: nothing that it becomes could be compared with it."""
    first, again = (source.answers(samples, "calibration_x").astype(np.float64) for _ in range(2))
    near = REPEATED_FRACTION * float(np.ptp(first))
    if first.shape != again.shape or not np.allclose(first, again, rtol=REPEATED_FRACTION, atol=near):
        raise ConfigError(
            "the model answers the same samples differently each time",
            hint="take out of it what draws random numbers",
        )


def _check_rows(answers: Array) -> None:
    """Name the metrics of models that answer with one number, whose truth may be integers all the same."""
    if answers.size == len(answers):
        raise ConfigError(
            f"a classifier answers with one row of scores per sample, this model with shape {list(answers.shape[1:])}",
            hint="say --metric auc for a detector of classes 0 and 1, or --metric mae for numbers to be answered",
        )


def _check_resolution(data: Dataset, floor: Floor) -> None:
    if floor.direction is Direction.LOWER and floor.baseline == 0:
        raise ConfigError(
            f"the model's {floor.metric} is 0, of which no part can be told",
            hint="leave evaluation_y out if it holds the model's own answers: then a candidate is judged by how many of them it gives",
        )
    count = len(data.evaluation_x)
    if floor.metric != ACCURACY:
        return  # The others do not count samples: an area under a curve counts pairs.
    if floor.max_drop > 0 and count * floor.max_drop < 1 - 1e-9:
        allowed = drop_at_least(1 / count)
        raise ConfigError(
            f"evaluation_x has {count} samples: one of them is {1 / count:.2%}, more than the drop of {floor.max_drop:.2%} that is to be told",
            hint=f"give at least {math.ceil(1 / floor.max_drop - 1e-9)} samples{f', or allow --max-drop {allowed}' if allowed else ''}",
        )


def _aims(order: ConversionOrder, source: Source, means: Means, floor: Floor) -> tuple[Aim, ...]:
    limits = order.limits
    constraints = Constraints(floor, limits.max_latency_ms, limits.max_bytes, limits.max_memory_bytes)
    aims = []
    for profile in order.profiles:
        family = family_for(profile, means, order.target)
        planned = stages(profile, means, family, order.effort)
        if source.can_be_quantized(family):
            planned = as_it_is(planned)
        aims.append(Aim(profile, planned, constraints))
    return tuple(aims)


def _means(source: Source, data: Dataset, students: tuple[Student, ...]) -> Means:
    families = tuple(family for family in RuntimeFamily if not source.can_become(family))
    trains = data.training is not None and not source.can_be_trained()
    # A file has its layout for good; what is still a module gets the one that suits.
    if isinstance(source, ModelFile):
        return Means(families, trains, students, opset=source.opset or OPSET)
    return Means(families, trains, students, is_image=data.evaluation_x.ndim == 4)


def _students(order: ConversionOrder, source: Source, data: Dataset) -> dict[Student, str]:
    """Name the students as recipes do, each with where its factory lies."""
    reason = source.can_be_trained() or (
        "" if data.training is not None else "the data have no train_x and train_y"
    )
    if order.students and reason:
        raise ConfigError(
            f"students cannot be trained: {reason}", hint="leave --student, or give what is missing"
        )
    named = [(parse_source(text).text, text) for text in order.students]
    twice = next((name for name, count in Counter(name for name, _ in named).items() if count > 1), "")
    if twice:
        raise ConfigError(f"two students are called {twice}", hint="give the file of one another name")
    return {
        Student(name, sha256=_digest_of_student(Student(text), data.calibration_x[:2])): text
        for name, text in named
    }


def _digest_of_student(student: Student, samples: Array) -> Digest:
    made = load_student(student)
    return fingerprint_of(made, made.answers(samples, "calibration_x"))
