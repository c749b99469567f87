"""Converts a model: export, shrink, verify on the runtime, select, bundle.

Decides the order of these steps and what is refused before the expensive ones begin. Each step's own decisions are in
its own file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgeml.errors import BackendError, ConfigError
from edgeml.ids import parse_name, release_id
from edgeml.manifest import Manifest, Provenance, Quality, RuntimeFamily, ScoreKind, Task
from edgeml.profile import HardwareProfile

from .assemble import (
    Content,
    Meaning,
    ReleaseName,
    check_shape,
    check_storage,
    measurement_of,
    members_of,
    write,
)
from .candidate import Measured, Recipe
from .dataset import Dataset, check_classes, read_dataset
from .expected_file import expected_of
from .metrics import Judge, check_scores
from .provenance import CONVERSION_LIBRARIES, git_commit, libraries
from .report import Conversion, candidate_rows, encode, report_of
from .select import Floor, Selection, check_runtime, select
from .sources.torch_model import TRUST_WARNING, SourceName, TorchModel, ask, load_source, parse_source
from .steps.onnx_export import export_onnx
from .steps.onnx_quantize import prepare, quantize
from .verify import LIMITS, Verified, not_made, verify

Step = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionOrder:
    """What to convert, for whom, and how much accuracy may be lost.

    `source` is `file.py:factory` or a .pt2 file; `data` an .npz with `calibration_x`, `evaluation_x` and, for a
    classifier, `evaluation_y`. `max_drop` is a fraction of 1. Bundles are written into `out`.
    """

    source: str
    data: Path
    profiles: tuple[HardwareProfile, ...]
    release: ReleaseName
    max_drop: float
    out: Path
    labels: tuple[str, ...] = ()
    scores: ScoreKind = ScoreKind.LOGITS


def convert(order: ConversionOrder, on_step: Step = lambda _: None) -> Conversion:
    """Convert a model and write one bundle for each candidate that a profile chose.

    Args:
        order: what to do.
        on_step: is told what is being done, for people.

    Raises:
        ConfigError: The source, data or an argument cannot be used.
        IncompatibleError: A profile has no runtime that models can be converted for.
        SelectionError: No candidate keeps enough accuracy for a profile.
        BudgetError: Nothing that keeps enough accuracy fits a profile.
        BackendError: The exported model cannot be prepared or run.
        StorageError: The disk refused; no half-written bundle is left.
    """
    name = _check(order)
    on_step("reading data")
    data = read_dataset(order.data)
    _check_resolution(data, order.max_drop)
    on_step(f"loading {name.text}")
    model = load_source(name)
    meaning = _meaning(order, data)
    judge = _judge(model, data, meaning)
    floor = Floor(judge.metric, judge.baseline, order.max_drop)
    verified = tuple(_candidates(model, data, judge, on_step))
    on_step("selecting")
    selections = tuple(
        select([one.candidate for one in verified], profile, floor) for profile in order.profiles
    )
    on_step("writing bundles")
    record = _Record(order, name, model, data, judge, meaning)
    host = next(one.result.host for one in verified if one.result is not None)
    rows = candidate_rows([one.candidate for one in verified], selections)
    report = report_of(
        release_id(order.release.model, order.release.version), host, floor, len(data.evaluation_x), rows
    )
    chosen = [one for one in verified if any(each.chosen is one.candidate.recipe for each in selections)]
    ready = [record.bundle(one, selections, encode(report)) for one in chosen]
    return Conversion(
        report=report,
        bundles=tuple(write(order.out, manifest, members) for manifest, members in ready),
        warnings=() if name.factory else (f"{name.text} {TRUST_WARNING}",),
    )


def _check(order: ConversionOrder) -> SourceName:
    parse_name(order.release.model, "the model's name")
    parse_name(order.release.version, "the version")
    if not order.profiles or len({profile.name for profile in order.profiles}) != len(order.profiles):
        raise ConfigError(
            "give each profile once, and at least one", hint="`edgeml profiles list` shows them"
        )
    for profile in order.profiles:
        check_runtime(profile)
    return parse_source(order.source)


def _check_resolution(data: Dataset, max_drop: float) -> None:
    count = len(data.evaluation_x)
    if max_drop > 0 and count * max_drop < 1 - 1e-9:
        raise ConfigError(
            f"evaluation_x has {count} samples: one of them is {1 / count:.2%}, more than the drop of {max_drop:.2%} that is to be told",
            hint=f"give at least {round(1 / max_drop + 0.5)} samples, or allow --max-drop {100 / count:.2g}%",
        )


def _judge(model: TorchModel, data: Dataset, meaning: Meaning) -> Judge:
    ask(model, data.calibration_x[:2], "calibration_x")
    answers = ask(model, data.evaluation_x, "evaluation_x")
    check_shape(meaning, answers)
    if data.evaluation_y is not None:
        check_classes(data.evaluation_y, answers.shape[1])
        check_scores(answers.astype(np.float32), meaning.scores)
    return Judge(answers, data.evaluation_y)


def _meaning(order: ConversionOrder, data: Dataset) -> Meaning:
    if data.evaluation_y is None:
        return Meaning(Task.OTHER, ScoreKind.NONE, order.labels)
    return Meaning(Task.CLASSIFICATION, order.scores, order.labels)


def _candidates(model: TorchModel, data: Dataset, judge: Judge, on_step: Step) -> Iterator[Verified]:
    on_step("exporting to ONNX")
    exported = export_onnx(model, data.calibration_x, "scores" if data.evaluation_y is not None else "output")
    on_step("verifying fp32 on its runtime")
    yield verify(Recipe.FP32, exported, data.evaluation_x, judge)
    on_step("preparing for int8")
    prepared = prepare(exported)
    for recipe in (Recipe.INT8_U8S8, Recipe.INT8_S8S8):
        on_step(f"quantizing {recipe.value}")
        try:
            quantized = quantize(prepared, data.calibration_x, recipe)
        except BackendError as error:
            yield not_made(recipe, error)
            continue
        on_step(f"verifying {recipe.value} on its runtime")
        yield verify(recipe, quantized, data.evaluation_x, judge)


@dataclass(frozen=True, slots=True)
class _Record:
    """What the manifests of one conversion have in common."""

    order: ConversionOrder
    name: SourceName
    model: TorchModel
    data: Dataset
    judge: Judge
    meaning: Meaning

    def bundle(
        self, one: Verified, selections: Sequence[Selection], report: bytes
    ) -> tuple[Manifest, dict[str, bytes]]:
        """Make a chosen candidate's manifest and members."""
        assert one.result is not None
        assert isinstance(one.candidate.outcome, Measured)
        recipe = one.candidate.recipe
        takers = [each for each in selections if each.chosen is recipe]
        names = tuple(sorted(each.profile for each in takers))
        manifest = Manifest(
            model=self.order.release.model,
            version=self.order.release.version,
            variant=recipe.variant,
            runtime=RuntimeFamily.ONNX,
            profiles=names,
            inputs=one.result.inputs,
            outputs=one.result.outputs,
            files=(),
            measurement=measurement_of(one.result, LIMITS.threads),
            provenance=self._provenance(recipe, takers),
            task=self.meaning.task,
            scores=self.meaning.scores,
            labels=self.meaning.labels,
            quality=Quality(
                self.judge.metric,
                one.candidate.outcome.value,
                self.judge.baseline,
                len(self.data.evaluation_x),
                one.candidate.outcome.agreement,
            ),
        )
        samples = (self.data.evaluation_x,)
        manifest = msgspec.structs.replace(manifest, expected=expected_of(manifest, samples, None))
        content = Content(one.model, samples, samples, one.result, report, with_monitor=True)
        members = members_of(manifest, content)
        check_storage(members, [profile for profile in self.order.profiles if profile.name in names])
        return manifest, members

    def _provenance(self, recipe: Recipe, takers: Sequence[Selection]) -> Provenance:
        return Provenance(
            source=self.name.text,
            source_sha256=self.model.sha256,
            data_sha256=self.data.sha256,
            recipe=recipe.steps,
            reason="; ".join(f"{each.profile}: {each.reason}" for each in takers),
            git_commit=git_commit(self.name.path.absolute().parent),
            libraries=libraries(CONVERSION_LIBRARIES),
        )
