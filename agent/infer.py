"""`edgeml infer`: asks a running agent about every sample of a file.

Decides how arrays of a file become requests and how answers are shown. It is a client like any other: it speaks the
Open Inference Protocol over HTTP, one connection, one sample a request, and knows nothing of workers.
"""

from __future__ import annotations

import contextlib
import http.client
import sys
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from edgeml.errors import BackendError, ConfigError, EdgemlError, LinkDownError, ManifestError, TransferError
from edgeml.tensors import DType

from .protocol import ModelMetadata, ReplyParameters, ServerMetadata, TensorMetadata
from .samples import read_samples

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array = npt.NDArray[np.generic]

TIMEOUT_S: Final = 30.0
REPLY_BYTES_MAX: Final = 64 << 20
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


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: _Size


class _Size(msgspec.Struct, frozen=True):
    binary_data_size: int


class _Reply(msgspec.Struct, frozen=True):
    model_name: str
    model_version: str
    parameters: ReplyParameters
    outputs: tuple[_Output, ...]


class _Refusal(msgspec.Struct, frozen=True):
    error: str


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of whom.

    `data` is an .npz or .json with one array per input of the model, or a single array for a model with one input. `url`
    is the agent's endpoint, for example `http://127.0.0.1:8090`; `model` None asks the one that serves. For `wait_s` an
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
    with contextlib.closing(Client(question.url)) as client:
        metadata = _patiently(lambda: client.model(question.model), question.wait_s)
        samples = read_samples(question.data, metadata)
        count = len(samples[0])
        answers = (client.infer(metadata, i, [array[i : i + 1] for array in samples]) for i in range(count))
        rows = list(_with_progress(answers, count))
    return summarize(metadata, rows)


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


class Client:
    """One connection to an agent.

    Raises:
        ConfigError: The URL is none.
    """

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        try:
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if parts.scheme not in kinds or not host:
            raise ConfigError(f"{url!r} is no URL of an agent", hint="for example http://127.0.0.1:8090")
        self._url = url
        self._path = parts.path.rstrip("/")
        self._connection = kinds[parts.scheme](host, port, timeout=TIMEOUT_S)

    def model(self, name: str | None) -> ModelMetadata:
        """Describe the named model, or the one that serves."""
        if name is None:
            server = _decode(self._ask("GET", "/v2")[1], ServerMetadata)
            if not server.models:
                raise TransferError(
                    "the agent has no model now", hint="assign or flash a release, or try again later"
                )
            name = server.models[0]
        path = f"/v2/models/{urllib.parse.quote(name, safe='')}"
        metadata: ModelMetadata = _decode(self._ask("GET", path)[1], ModelMetadata)
        return metadata

    def infer(self, metadata: ModelMetadata, index: int, inputs: Sequence[Array]) -> Row:
        """Ask about one sample; arrays are [1, ...] and of the model's types."""
        described = [
            {
                "name": spec.name,
                "datatype": spec.datatype,
                "shape": array.shape,
                "parameters": {"binary_data_size": array.nbytes},
            }
            for spec, array in zip(metadata.inputs, inputs, strict=True)
        ]
        head = msgspec.json.encode({"inputs": described, "parameters": {"binary_data_output": True}})
        body = b"".join((head, *(array.tobytes() for array in inputs)))
        headers = {
            "Content-Type": "application/octet-stream",
            "Inference-Header-Content-Length": str(len(head)),
        }
        path = f"/v2/models/{urllib.parse.quote(metadata.name, safe='')}/infer"
        started_s = time.perf_counter()
        length, answer = self._ask("POST", path, body, headers)
        latency_ms = (time.perf_counter() - started_s) * 1000
        reply = _decode(answer[:length], _Reply)
        outputs = _arrays(reply, answer[length:])
        parameters = reply.parameters
        classified = parameters.predicted is not None
        return Row(
            row=index,
            latency_ms=latency_ms,
            model_ms=parameters.latency_us / 1000,
            predicted=parameters.predicted,
            label=parameters.label,
            confidence=confidence(outputs[0], metadata) if classified else None,
            outputs=None
            if classified
            else {
                one.name: array.ravel().tolist() for one, array in zip(reply.outputs, outputs, strict=True)
            },
        )

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Return how much of the answer is JSON, and all of it."""
        try:
            self._connection.request(method, self._path + path, body, headers or {})
            response = self._connection.getresponse()
            answer = response.read(REPLY_BYTES_MAX + 1)
        except TimeoutError as error:
            self._connection.close()
            raise LinkDownError(f"the agent at {self._url} did not answer within {TIMEOUT_S:g} s") from error
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise LinkDownError(
                f"no agent answers at {self._url}: {reason}",
                hint="start one with serve.listen set: edgeml agent run -c agent.toml",
            ) from error
        if len(answer) > REPLY_BYTES_MAX:
            self._connection.close()
            raise ManifestError(f"an answer of more than {REPLY_BYTES_MAX} bytes")
        if response.status != http.HTTPStatus.OK:
            raise _refusal(response.status, answer)
        stated = response.headers.get("Inference-Header-Content-Length", "")
        return int(stated) if stated.isascii() and stated.isdecimal() else len(answer), answer


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


def _arrays(reply: _Reply, data: bytes) -> list[Array]:
    import numpy as np

    found: list[Array] = []
    at = 0
    for output in reply.outputs:
        size = output.parameters.binary_data_size
        try:
            dtype = np.dtype(DType.from_protocol_name(output.datatype).value)
            found.append(np.frombuffer(data[at : at + size], dtype).reshape(output.shape))
        except ValueError as error:
            raise ManifestError(f"the agent's answer is not an answer: {error}") from error
        at += size
    if not found:
        raise ManifestError("the agent's answer has no outputs")
    return found


def _decode(data: bytes, kind: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(
            f"what answers is no agent: {error}", hint="check --url; is something else listening there?"
        ) from error


def _refusal(status: int, answer: bytes) -> EdgemlError:
    try:
        message = msgspec.json.decode(answer, type=_Refusal).error.splitlines()[0]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, IndexError):
        message = f"the agent answered {status}"
    if status in {429, 503}:
        return TransferError(message, hint="try again in a moment")
    if 400 <= status < 500:
        return ConfigError(message)
    return BackendError(message)
