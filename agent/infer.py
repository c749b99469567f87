"""`edgeml infer`: asks a running agent about every sample of a file.

Decides how arrays of a file become requests and how answers are shown. It asks as any program
would, through `edgeml.client`: one connection, one sample a request; it knows nothing of workers.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edgeml.client import Client
from edgeml.errors import TransferError
from edgeml.inference import ModelMetadata, TensorMetadata

from .samples import read_samples

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]

AGAIN_S: Final = 0.5
CLASSES_SHOWN: Final = 20
PROGRESS_ROWS: Final = 100
"""From so many samples on, progress is shown while they are answered."""


class Row(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to one sample. `latency_ms` is what the client waited, `model_ms` what the model took."""

    row: int
    latency_ms: float
    model_ms: float
    predicted: int | None = None
    label: str | None = None
    confidence: float | None = None
    outputs: dict[str, list[float]] | None = None


class Report(msgspec.Struct, frozen=True):
    """All answers, and medians and 95th percentiles of their latencies."""

    model: str
    version: str
    rows: list[Row]
    latency_p50_ms: float
    latency_p95_ms: float
    model_p50_ms: float
    model_p95_ms: float


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of whom.

    `data` is an .npz or .json with one array per input of the model, or a single array for a model with one input. `url`
    is the agent's endpoint, for example `http://127.0.0.1:8090` or `unix:///run/edgeml/agent.sock`; `model` None asks the one that serves. For `wait_s` an
    agent that is not there, or has no model, is asked again.
    """

    data: Path
    url: str
    model: str | None = None
    wait_s: float = 0.0


def ask(question: Question) -> Report:
    """Ask an agent about every sample of a file; show progress on a terminal's standard error.

    Raises:
        ConfigError: The file does not fit the model, or there is no such model.
        LinkDownError: Nothing answers at the URL.
        TransferError: The agent is overloaded or has no model now.
        BackendError: The model failed.
    """
    with Client(question.url) as client:
        metadata = _patiently(lambda: client.model(question.model), question.wait_s)
        samples = read_samples(question.data, metadata)
        count = len(samples[0])
        answers = (row_of(client, metadata, i, [array[i : i + 1] for array in samples]) for i in range(count))
        rows = list(_with_progress(answers, count))
    return summarize(metadata, rows)


def describe(question: Question) -> ModelMetadata:
    """Ask the agent what its model takes.

    Raises:
        ConfigError: There is no such model, or there are several.
        TransferError: Nothing answers at the URL, or it has no model now.
    """
    with Client(question.url) as client:
        return _patiently(lambda: client.model(question.model), question.wait_s)


def tell(report: Report, rows_max: int | None = None) -> None:
    """Print the first answers, a line each, how many there are of each class, and how long they took."""
    import click

    rows = report.rows[:rows_max]
    for row in rows:
        click.echo(line_of(row))
    if left := len(report.rows) - len(rows):
        click.echo(f"   ... {left} more; --rows all shows them, --json has everything")
    classes = Counter(name_of(row) for row in report.rows if row.predicted is not None)
    if classes:
        click.echo(", ".join(f"{name}: {count}" for name, count in sorted(classes.items())[:CLASSES_SHOWN]))
    count = len(report.rows)
    click.echo(
        f"{count} samples, {report.model} {report.version}: "
        f"p50 {report.latency_p50_ms:.2f} ms, p95 {report.latency_p95_ms:.2f} ms "
        f"(in the model p50 {report.model_p50_ms:.2f} ms, p95 {report.model_p95_ms:.2f} ms)"
    )


def row_of(client: Client, metadata: ModelMetadata, index: int, inputs: Sequence[Array]) -> Row:
    """Ask about one sample; arrays are [1, ...] and of the model's types."""
    named = {spec.name: array for spec, array in zip(metadata.inputs, inputs, strict=True)}
    started_s = time.perf_counter()
    answer = client.infer(metadata.name, named)
    latency_ms = (time.perf_counter() - started_s) * 1000
    scores = next(iter(answer.outputs.values()))
    classified = answer.predicted is not None
    return Row(
        row=index,
        latency_ms=latency_ms,
        model_ms=answer.latency_us / 1000,
        predicted=answer.predicted,
        label=answer.label,
        confidence=confidence(scores, metadata) if classified else None,
        outputs=None
        if classified
        else {name: array.ravel().tolist() for name, array in answer.outputs.items()},
    )


def confidence(scores: Array, metadata: ModelMetadata) -> float | None:
    """Highest probability, if the model's scores say what they are."""
    import numpy as np

    kind = metadata.parameters.scores
    if kind not in {"logits", "probabilities"} or not scores.size:
        return None
    real = _real(scores, metadata.outputs[0]).ravel()
    if kind == "probabilities":
        return float(real.max())
    shifted = np.exp(real - real.max())
    return float(shifted.max() / shifted.sum())


def _patiently(ask_once: Callable[[], ModelMetadata], wait_s: float) -> ModelMetadata:
    """Ask again while the agent starts, or has no model yet."""
    deadline_s = time.monotonic() + wait_s
    while True:
        try:
            return ask_once()
        except TransferError:
            if time.monotonic() + AGAIN_S > deadline_s:
                raise
        time.sleep(AGAIN_S)


def name_of(row: Row) -> str:
    """What a classifier's answer is called."""
    return row.label if row.label is not None else f"class {row.predicted}"


def line_of(row: Row) -> str:
    """One line for a person."""
    if row.predicted is None:
        values = ", ".join(f"{name} {values[:8]}" for name, values in (row.outputs or {}).items())
        return f"{row.row:>6}  {values}  {row.latency_ms:8.2f} ms"
    said = name_of(row)
    sure = f"{row.confidence:6.1%}" if row.confidence is not None else ""
    return f"{row.row:>6}  {said:<16} {sure:>6}  {row.latency_ms:8.2f} ms"


def summarize(metadata: ModelMetadata, rows: list[Row]) -> Report:
    """Put rows and their quantiles together."""
    import numpy as np

    waited = np.percentile([row.latency_ms for row in rows], [50, 95])
    took = np.percentile([row.model_ms for row in rows], [50, 95])
    return Report(
        metadata.name,
        metadata.versions[0],
        rows,
        float(waited[0]),
        float(waited[1]),
        float(took[0]),
        float(took[1]),
    )


def _with_progress(rows: Iterator[Row], count: int) -> Iterator[Row]:
    import click

    if count < PROGRESS_ROWS or not sys.stderr.isatty():
        yield from rows
        return
    with click.progressbar(rows, length=count, label="samples", file=sys.stderr) as bar:
        yield from bar


def _real(array: Array, spec: TensorMetadata) -> npt.NDArray[np.float64]:
    import numpy as np

    real = array.astype(np.float64)
    if spec.parameters.scale is not None:
        real = (real - (spec.parameters.zero_point or 0)) * spec.parameters.scale
    return real
