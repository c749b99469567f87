"""`edgeml infer --batch`: asks a running agent about many samples, and does not stop at a bad one.

Decides how many are asked about at once, what is asked again (an agent that is overloaded or being restarted), what is
written for each sample, and the figures at the end. Where samples come from is `sample_source`'s business.
"""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import local
from typing import IO, Any, Final

import msgspec

from edgeml.client import Client
from edgeml.errors import EdgemlError, LinkDownError, TransferError
from edgeml.inference import ModelMetadata

from .infer import Question, Row, describe, row_of
from .sample_source import Sample, open_samples

AHEAD: Final = 4
"""Samples that are read ahead for each client."""
TRIES: Final = 20
TRY_AGAIN_S: Final = 0.25


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is written for one sample: an answer, or why there is none."""

    sample: str
    answer: Row | None = None
    error: str = ""


class BatchReport(msgspec.Struct, frozen=True):
    """What came of a batch. Latencies are what clients waited, of those that were answered."""

    model: str
    version: str
    samples: int
    failed: int
    skipped: int
    seconds: float
    samples_per_s: float
    latency_p50_ms: float
    latency_p95_ms: float
    classes: dict[str, int]
    errors: dict[str, int]
    """The first words of each error, and how often it was."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What is asked, by how many clients at once, and where the lines go (JSON lines; None: nowhere)."""

    question: Question
    clients: int
    out: Path | None


def run(batch: Batch) -> BatchReport:
    """Ask about every sample; show progress on a terminal's standard error.

    Raises:
        ConfigError: The samples cannot be read, or there is no such model.
        StorageError: The file of answers cannot be written.
        TransferError: Nothing answers at the URL, at first or any more, or it has no model.
    """
    metadata = describe(batch.question)
    source = open_samples(batch.question.data, metadata)
    latencies: list[float] = []
    classes: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    started_s = time.monotonic()
    with (
        closing(_Asker(batch.question.url, metadata)) as asker,
        _lines_to(batch.out) as write,
        ThreadPoolExecutor(batch.clients, "client") as pool,
    ):
        lines = _in_order(pool, asker, source.samples, batch.clients * AHEAD)
        for line in _with_progress(lines, source.count):
            write(line)
            if line.answer is None:
                errors[line.error[:80]] += 1
                continue
            latencies.append(line.answer.latency_ms)
            if line.answer.predicted is not None:
                classes[line.answer.label or f"class {line.answer.predicted}"] += 1
    seconds = time.monotonic() - started_s
    ordered = sorted(latencies) or [0.0]
    return BatchReport(
        model=metadata.name,
        version=metadata.versions[0],
        samples=len(latencies) + errors.total(),
        failed=errors.total(),
        skipped=source.skipped,
        seconds=seconds,
        samples_per_s=len(latencies) / seconds if seconds else 0.0,
        latency_p50_ms=ordered[len(ordered) // 2],
        latency_p95_ms=ordered[int(len(ordered) * 0.95)],
        classes=dict(classes.most_common()),
        errors=dict(errors.most_common()),
    )


def tell(report: BatchReport) -> None:
    """Print the figures."""
    import click

    for error, count in report.errors.items():
        click.echo(f"{count} failed: {error}", err=True)
    if report.classes:
        click.echo(", ".join(f"{name}: {count}" for name, count in report.classes.items()))
    skipped = f", {report.skipped} other files left alone" if report.skipped else ""
    click.echo(
        f"{report.samples} samples, {report.failed} failed{skipped}; {report.model} {report.version}: "
        f"{report.samples_per_s:.0f} samples/s in {report.seconds:.1f} s, "
        f"p50 {report.latency_p50_ms:.2f} ms, p95 {report.latency_p95_ms:.2f} ms"
    )


class _Asker:
    """Asks, with a connection for each thread."""

    def __init__(self, url: str, metadata: ModelMetadata) -> None:
        self._url = url
        self._metadata = metadata
        self._local = local()
        self._clients: list[Client] = []

    def close(self) -> None:
        """Close all connections; nobody asks any more."""
        for client in self._clients:
            client.close()

    def __call__(self, index: int, sample: Sample) -> Line:
        if sample.error:
            return Line(sample.name, error=sample.error)
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._local.client = Client(self._url)
            self._clients.append(client)
        for left in reversed(range(TRIES)):
            try:
                return Line(sample.name, row_of(client, self._metadata, index, sample.inputs))
            except LinkDownError:
                # Nobody is there: each of the other samples would wait as long in vain.
                if not left:
                    raise
            except TransferError as error:
                # Overloaded, or its worker is being restarted: nobody has seen this sample yet.
                if not left:
                    return Line(sample.name, error=error.message)
            except EdgemlError as error:
                return Line(sample.name, error=error.message)
            time.sleep(TRY_AGAIN_S)
        raise AssertionError("unreachable")


def _in_order(
    pool: ThreadPoolExecutor, asker: _Asker, samples: Iterator[Sample], ahead: int
) -> Iterator[Line]:
    """Answer in the order of the samples, with a bounded number under way."""
    under_way: deque[Future[Line]] = deque()
    for index, sample in enumerate(samples):
        under_way.append(pool.submit(asker, index, sample))
        if len(under_way) >= ahead:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


@contextmanager
def _lines_to(path: Path | None) -> Iterator[Any]:
    from edgeml.atomic import storage_error

    if path is None:
        yield lambda _line: None
        return
    encoder = msgspec.json.Encoder()
    try:
        with path.open("wb") as file:
            writer: IO[bytes] = file
            yield lambda line: writer.write(encoder.encode(line) + b"\n")
    except OSError as error:
        raise storage_error(error, path) from error


def _with_progress(lines: Iterator[Line], count: int) -> Iterator[Line]:
    import click

    if not sys.stderr.isatty():
        yield from lines
        return
    with click.progressbar(lines, length=count, label="samples", show_pos=True, file=sys.stderr) as bar:
        yield from bar
