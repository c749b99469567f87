"""Puts a verified model, its manifest, monitor, golden vectors and report into a bundle.

Decides what is recorded as golden vectors, when there is a monitor, and the bundle's name. Times that were measured
are only in the manifest's `measurement` and in the report, so that everything else is the same from run to run.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeml import bundle, golden, monitor
from edgeml.columns import to_real
from edgeml.errors import BudgetError, ConfigError, EdgemlError
from edgeml.golden import GOLDEN_BYTES_MAX, SAMPLES, Golden
from edgeml.ids import digest_of_file
from edgeml.manifest import Manifest, Measurement, ScoreKind, Task
from edgeml.pipeline import Pipeline
from edgeml.probe import ProbeResult
from edgeml.profile import DeviceRuntime, HardwareProfile
from edgeml.reference import build_monitor
from edgeml.tensors import TensorSpec

from .metrics import check_scores
from .report import WrittenBundle
from .units import size

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class ReleaseName:
    """What the user calls the release."""

    model: str
    version: str


@dataclass(frozen=True, slots=True)
class Meaning:
    """What the first output means."""

    task: Task
    scores: ScoreKind
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Content:
    """What goes into a bundle: the model, and what it answered to `inputs` [samples, ...] on its runtime.

    `given` is what steps made those inputs of; the same where there are none.
    """

    model: bytes
    given: tuple[Array, ...]
    inputs: tuple[Array, ...]
    result: ProbeResult
    report: bytes | None
    with_monitor: bool


def measurement_of(result: ProbeResult, threads: int) -> Measurement:
    """Turn a probe's figures into the manifest's."""
    return Measurement(
        result.host,
        result.runtime,
        threads,
        result.latency_p50_ms,
        result.latency_p95_ms,
        result.peak_memory_bytes,
    )


def check_labels(labels: Sequence[str]) -> None:
    """Refuse names of classes that do not tell these apart.

    Raises:
        ConfigError: A name is empty, or there twice.
    """
    names = [label.strip() for label in labels]
    if "" in names:
        raise ConfigError(
            f"--labels has an empty name, at place {names.index('')}",
            hint="name every class once, in order, with one comma between two names",
        )
    twice = next((name for name in names if names.count(name) > 1), "")
    if twice:
        raise ConfigError(f"--labels names {twice!r} twice", hint="name every class once, in order")


def check_meaning(meaning: Meaning, spec: TensorSpec, answers: Array) -> None:
    """Refuse a meaning that the answers [samples, ...] of the first output to real samples do not bear out.

    Raises:
        ConfigError: As `check_shape`, or the scores are other ones than stated.
    """
    check_shape(meaning, answers)
    if meaning.task is Task.CLASSIFICATION:
        check_scores(to_real(answers, spec), meaning.scores)


def check_shape(meaning: Meaning, answers: Array) -> None:
    """Refuse a meaning that the shape of the answers [samples, ...] does not bear out.

    Raises:
        ConfigError: Not one row of scores per sample, or another number of labels.
    """
    if meaning.task is not Task.CLASSIFICATION:
        if meaning.labels:
            raise ConfigError(
                "--labels names classes, and the task is no classification",
                hint="give evaluation_y, or leave --labels",
            )
        return
    if answers.ndim != 2 or answers.shape[1] < 2:
        raise ConfigError(
            f"a classifier answers with one row of scores per sample, this model with shape {list(answers.shape[1:])}",
            hint="leave evaluation_y out of the data if the model is no classifier",
        )
    if meaning.labels and len(meaning.labels) != answers.shape[1]:
        raise ConfigError(
            f"--labels names {len(meaning.labels)} classes, the model has {answers.shape[1]}",
            hint="name every class once, in order",
        )


def members_of(manifest: Manifest, content: Content) -> dict[str, bytes]:
    """Make the members of a bundle.

    Raises:
        ConfigError: The samples do not make a monitor.
    """
    count = golden_samples(content.given)
    pipeline = Pipeline(manifest)
    recorded = Golden(
        tuple(array[:count] for array in content.given),
        tuple(
            pipeline.finish(
                [array[:count] for array in content.inputs],
                [array[:count] for array in content.result.answers],
            )
        ),
    )
    members = {manifest.runtime.model_member: content.model, bundle.GOLDEN: golden.encode(recorded)}
    if content.with_monitor:
        watched = manifest.watched
        arrays = pipeline.watched(content.given, content.inputs)
        inputs = {spec.name: array for spec, array in zip(watched.inputs, arrays, strict=True)}
        outputs = {
            spec.name: array for spec, array in zip(watched.outputs, content.result.answers, strict=True)
        }
        members[bundle.MONITOR] = monitor.encode(build_monitor(watched, inputs, outputs))
    if content.report is not None:
        members[bundle.REPORT] = content.report
    return members


def golden_samples(inputs: Sequence[Array]) -> int:
    """How many samples are recorded: SAMPLES, or fewer where they are large."""
    sample_bytes = sum(array[:1].nbytes for array in inputs)
    return max(1, min(SAMPLES, len(inputs[0]), GOLDEN_BYTES_MAX // 2 // max(sample_bytes, 1)))


def stored_bytes(manifest: Manifest, members: dict[str, bytes], profile: HardwareProfile) -> int:
    """What a device of a profile stores of a bundle: all of it or, on a microcontroller, the model alone."""
    if profile.runtimes == (DeviceRuntime.TFLITE_MICRO,):
        return len(members[manifest.runtime.model_member])
    return sum(map(len, members.values()))


def check_storage(manifest: Manifest, members: dict[str, bytes], profiles: Sequence[HardwareProfile]) -> None:
    """Refuse a bundle that a profile has no room for.

    Raises:
        BudgetError: It is larger than what one variant may take.
    """
    for profile in profiles:
        observed = stored_bytes(manifest, members, profile)
        if observed > profile.model_storage.value:
            raise BudgetError(
                f"the bundle does not fit {profile.name}: {size(observed)} of {size(profile.model_storage.value)} storage for a model",
                budget=profile.model_storage.value, observed=observed, unit="bytes", hint="use a smaller model",
            )  # fmt: skip


def path_of(out: Path, manifest: Manifest) -> Path:
    """Where a bundle is written."""
    return out / f"{manifest.model}-{manifest.version}-{manifest.variant}.edgeml"


def warn_of_earlier(out: Path, release: ReleaseName, written: Sequence[str]) -> tuple[str, ...]:
    """Tell of bundles of the same release that an earlier conversion left beside those that are written."""
    stale = []
    for path in sorted(out.glob(f"{release.model}-{release.version}-*.edgeml")):
        if str(path) in written:
            continue
        with contextlib.suppress(EdgemlError), bundle.Bundle(path) as one:
            manifest = one.manifest
            if (manifest.model, manifest.version) == (release.model, release.version):
                stale.append(path.name)
    if not stale:
        return ()
    what = f"bundles of {release.model}@{release.version}: {', '.join(stale)}"
    return (f"{out} holds earlier {what}; delete them if they are not to be published",)


def write(out: Path, manifest: Manifest, members: dict[str, bytes]) -> WrittenBundle:
    """Write a bundle to `out/MODEL-VERSION-VARIANT.edgeml`.

    Raises:
        StorageError: The disk refused; nothing is left behind.
    """
    path = path_of(out, manifest)
    bundle.write_bundle(path, manifest, members)
    return WrittenBundle(
        path=str(path), variant=manifest.variant, runtime=manifest.runtime, profiles=manifest.profiles,
        length_bytes=path.stat().st_size, sha256=digest_of_file(path),
    )  # fmt: skip
