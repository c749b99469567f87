"""Bundles a model that exists already, as it is.

Decides which files are taken, what is run in a child process before a bundle is written, and what stands in for
real data where there are none: random inputs from a fixed seed, which show that a device computes the same, and nothing
about whether the answers are any good.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from edgeml import golden
from edgeml.errors import BackendError, BudgetError, ConfigError, IncompatibleError
from edgeml.expectation import Expected
from edgeml.golden import SAMPLES
from edgeml.ids import digest_of, parse_name
from edgeml.manifest import Manifest, Measurement, Provenance, Quality, RuntimeFamily, ScoreKind, Task
from edgeml.pipeline import Pipeline
from edgeml.probe import Description, ProbeResult, describe, probe
from edgeml.profile import DeviceRuntime, HardwareProfile
from edgeml.steps import Processing
from edgeml.tensors import BATCH, DType, TensorSpec

from .assemble import (
    Array,
    Content,
    Meaning,
    ReleaseName,
    check_labels,
    check_meaning,
    check_shape,
    check_storage,
    golden_samples,
    measurement_of,
    members_of,
    write,
)
from .dataset import Dataset, check_classes, read_evaluation
from .expected_file import expected_of
from .folder import check_writable
from .metrics import ACCURACY, classes_of
from .processing_file import check_fit, check_samples, sized
from .provenance import PACKAGING_LIBRARIES, git_commit, libraries
from .report import Packaging
from .sources.onnx_file import parse, read_bounded, refuse_external_data
from .sources.tflite_file import refuse_small_state
from .units import size
from .verify import LIMITS

SEED: Final = 0
REPEAT_FRACTION: Final = golden.TOLERANCE_FRACTION / 5
"""Largest difference of two runs here, as a fraction of the answers' range: other devices need the rest of the tolerance."""
RANDOM_ORIGIN: Final = f"{SAMPLES} random inputs (seed {SEED}): no data were given"
_RUNTIMES: Final = {
    RuntimeFamily.ONNX: frozenset({DeviceRuntime.ONNXRUNTIME}),
    RuntimeFamily.TFLITE: frozenset({DeviceRuntime.AI_EDGE_LITERT, DeviceRuntime.TFLITE_RUNTIME}),
}
Step = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PackagingOrder:
    """What to bundle and for whom.

    `data` is an .npz with `evaluation_x` and, to score a classifier, `evaluation_y`; None if there are no data. With
    `processing`, samples are what callers give: the steps are applied to them. What is `expected` of an input replaces what
    the data show of it.
    `task` None means: a classifier if `evaluation_y` is given.
    """

    model: Path
    profiles: tuple[HardwareProfile, ...]
    release: ReleaseName
    out: Path
    data: Path | None = None
    task: Task | None = None
    scores: ScoreKind = ScoreKind.LOGITS
    labels: tuple[str, ...] = ()
    processing: Processing | None = None
    expected: Expected | None = None


def package(order: PackagingOrder, on_step: Step = lambda _: None) -> Packaging:
    """Check a model file in a child process and bundle it as it is.

    Raises:
        ConfigError: The file, the data or an argument cannot be used, or `out` cannot be written.
        ArtifactError: The model keeps its weights in another file.
        IncompatibleError: A profile has no runtime for it, or its runtimes would die of it.
        BackendError: Its runtime refuses it, or dies of it; or what it answers cannot be golden vectors.
        BudgetError: It does not fit a profile.
        StorageError: The disk refused; no half-written bundle is left.
    """
    family = _check(order)
    model = _read(order.model, family)
    data = None if order.data is None else read_evaluation(order.data)
    on_step("checking the model in a child process")
    draft = _draft(order, family, describe(model, family, limits=LIMITS))
    if family is RuntimeFamily.TFLITE:
        refuse_small_state(model, order.model.name)
    check_fit(draft)
    given = random_inputs(sized(draft)) if data is None else (data.evaluation_x,)
    if data is not None and order.processing is not None:
        check_samples(draft.surface.inputs[0], data.evaluation_x)
    expected = expected_of(draft, None if data is None else given, order.expected)
    inputs = given if order.processing is None else Pipeline(draft).prepare_samples(given)
    on_step("running it on its runtime")
    result = probe(model, family, inputs, limits=LIMITS)
    _check_budget(len(model), result.peak_memory_bytes, order.profiles)
    count = golden_samples(given)
    _check_finite(result, count, order)
    meaning = _meaning(order, data)
    answers = result.answers[0]
    if data is None:
        check_shape(meaning, answers)
    else:
        check_meaning(meaning, result.outputs[0], answers)
    quality = _quality(data, answers)
    origin = RANDOM_ORIGIN if data is None else "evaluation samples"
    manifest = msgspec.structs.replace(
        draft,
        inputs=result.inputs,
        outputs=result.outputs,
        measurement=measurement_of(result, LIMITS.threads),
        provenance=Provenance(
            source=order.model.name,
            source_sha256=digest_of(model),
            data_sha256=None if data is None else data.sha256,
            reason=f"packaged as it is; golden vectors from {origin}",
            git_commit=git_commit(order.model.absolute().parent),
            libraries=libraries(PACKAGING_LIBRARIES),
        ),
        task=meaning.task,
        scores=meaning.scores,
        labels=meaning.labels,
        quality=quality,
        expected=expected,
    )
    check_fit(manifest)
    on_step("running it once more")
    # After as many requests as before: some models keep a state from one to the next.
    again = probe(model, family, inputs, limits=LIMITS, runs=result.timing.runs)
    recorded, repeated = ([one[:count] for one in run.answers] for run in (result, again))
    _check_repeats(manifest, recorded, repeated, order.model.name)
    on_step("writing the bundle")
    members = members_of(manifest, Content(model, given, inputs, result, None, with_monitor=data is not None))
    check_storage(manifest, members, order.profiles)
    return Packaging(
        bundle=write(order.out, manifest, members),
        host=result.host,
        runtime=result.runtime,
        latency_p50_ms=result.latency_p50_ms,
        latency_p95_ms=result.latency_p95_ms,
        peak_memory_bytes=result.peak_memory_bytes,
        metric=ACCURACY,
        value=None if quality is None else quality.value,
        samples=0 if data is None else len(data.evaluation_x),
        golden_samples=count,
        golden_origin=origin,
        has_monitor=data is not None,
        processing=order.processing,
        expected=expected,
    )


def _draft(order: PackagingOrder, family: RuntimeFamily, described: Description) -> Manifest:
    """What is known of the bundle before the model ran."""
    return Manifest(
        model=order.release.model,
        version=order.release.version,
        variant=f"{family.value}-as-is",
        runtime=family,
        profiles=tuple(sorted(profile.name for profile in order.profiles)),
        inputs=described.inputs,
        outputs=described.outputs,
        files=(),
        measurement=Measurement("", described.runtime, LIMITS.threads, 0.0, 0.0, 0),
        provenance=Provenance(order.model.name, digest_of(b"")),
        processing=order.processing,
    )


def random_inputs(specs: tuple[TensorSpec, ...]) -> tuple[Array, ...]:
    """Make SAMPLES inputs from a fixed seed: reals from [0, 1), integers from all of their type's range.

    Raises:
        ConfigError: A dimension other than the batch is free, so nobody knows its size.
    """
    generator = np.random.Generator(np.random.PCG64(SEED))
    arrays: list[Array] = []
    for spec in specs:
        if BATCH in spec.sample_shape:
            raise ConfigError(
                f"input {spec.name} has free dimensions besides the batch: {list(spec.shape)}",
                hint="give --data with evaluation_x, or fix those dimensions",
            )
        shape = (SAMPLES, *spec.sample_shape)
        kind = np.dtype(spec.dtype.value)
        if spec.dtype is DType.BOOL:
            arrays.append(generator.integers(0, 2, shape).astype(bool))
        elif kind.kind == "f":
            arrays.append(generator.random(shape).astype(kind))
        else:
            # Wide integers are mostly indices, whose range the file does not state; 0 and 1 are the safest ones.
            low, high = (0, 2) if kind.itemsize > 2 else (np.iinfo(kind).min, np.iinfo(kind).max + 1)
            arrays.append(generator.integers(low, high, shape).astype(kind))
    return tuple(arrays)


def _check(order: PackagingOrder) -> RuntimeFamily:
    parse_name(order.release.model, "the model's name")
    parse_name(order.release.version, "the version")
    if not order.profiles or len({profile.name for profile in order.profiles}) != len(order.profiles):
        raise ConfigError(
            "give each profile once, and at least one", hint="`edgeml profiles list` shows them"
        )
    check_labels(order.labels)
    families = {f".{family.value}": family for family in _RUNTIMES}
    if order.model.suffix not in families:
        raise ConfigError(
            f"{order.model.name} is neither .onnx nor .tflite",
            hint="`edgeml convert` makes bundles from torch models; other formats have to be exported to ONNX first",
        )
    family = families[order.model.suffix]
    for profile in order.profiles:
        if not _RUNTIMES[family] & set(profile.runtimes):
            shown = ", ".join(runtime.value for runtime in profile.runtimes) or "none"
            raise IncompatibleError(
                f"profile {profile.name} has no runtime for {order.model.suffix} models; it has {shown}",
                hint="`edgeml profiles list` shows which profile has which runtime",
            )
    check_writable(order.out, "--out")
    return family


def _read(path: Path, family: RuntimeFamily) -> bytes:
    model = read_bounded(path)
    if family is RuntimeFamily.ONNX:
        refuse_external_data(parse(model, path.name), path.name)
    return model


def _check_budget(length_bytes: int, peak_memory_bytes: int, profiles: tuple[HardwareProfile, ...]) -> None:
    for profile in profiles:
        for observed, budget, what in (
            (length_bytes, profile.model_storage.value, "storage"),
            (
                peak_memory_bytes,
                profile.model_memory.value,
                "memory (with its runtime, measured on this host)",
            ),
        ):
            if observed > budget:
                raise BudgetError(
                    f"the model does not fit {profile.name}: {size(observed)} of {size(budget)} {what}",
                    budget=budget, observed=observed, unit="bytes", hint="shrink the model, or choose another profile",
                )  # fmt: skip


def _check_finite(result: ProbeResult, count: int, order: PackagingOrder) -> None:
    """Refuse NaN and infinity among what would be recorded: they are never the same as anything."""
    for spec, answers in zip(result.outputs, result.answers, strict=True):
        if not np.isfinite(answers[:count].astype(np.float64)).all():
            shown = "random inputs" if order.data is None else f"the first {count} samples of evaluation_x"
            raise BackendError(
                f"{order.model.name} answers NaN or infinity to {shown}, in output {spec.name}",
                hint="give --data with evaluation_x as the model meets it"
                if order.data is None
                else "leave out samples that the model has no answer to, or repair the model",
            )


def _check_repeats(manifest: Manifest, first: Sequence[Array], second: Sequence[Array], name: str) -> None:
    """Refuse a model that answers otherwise the second time: on a device, its golden vectors would hold by chance alone."""
    # The model's own answers, without the steps around it: a class may hide that the scores are random.
    plain = msgspec.structs.replace(manifest, processing=None)
    compared = golden.compare(first, second, plain)
    if not compared.passed or compared.difference_fraction > REPEAT_FRACTION:
        raise BackendError(
            f"{name} does not answer twice the same here: {compared.describe()}",
            hint="take out what is random in it, such as dropout, noise or sampling",
        )


def _meaning(order: PackagingOrder, data: Dataset | None) -> Meaning:
    labelled = data is not None and data.evaluation_y is not None
    task = order.task or (Task.CLASSIFICATION if labelled else Task.OTHER)
    if labelled and task is not Task.CLASSIFICATION:
        raise ConfigError(
            f"--task {task.value}, and the data have evaluation_y",
            hint="leave --task, or leave evaluation_y out",
        )
    return Meaning(task, order.scores if task is Task.CLASSIFICATION else ScoreKind.NONE, order.labels)


def _quality(data: Dataset | None, answers: Array) -> Quality | None:
    """Score a classifier. There is no other model to compare it with, so it is its own baseline."""
    if data is None or data.evaluation_y is None:
        return None
    check_classes(data.evaluation_y, answers.shape[1])
    value = float((classes_of(answers) == data.evaluation_y).mean())
    return Quality(ACCURACY, value, value, len(data.evaluation_y), 1.0)
