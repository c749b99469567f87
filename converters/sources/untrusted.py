"""Files whose opening runs code of whoever wrote them: TorchScript archives and pickled estimators.

Decides that they are opened in the sandbox alone, how much they may take there, and what is believed of what comes back:
bytes of an ONNX model, checked like any other, and arrays of numbers. What runs in there is `opened.py`.
"""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

from edgeml.child import ChildLimits, one_line, run_child
from edgeml.errors import ArtifactError, BackendError, BudgetError, ConfigError
from edgeml.manifest import ScoreKind

from .opened import (
    ANSWERS,
    MODEL,
    OUTPUT_BYTES_MAX,
    REPORT,
    REQUEST,
    SAMPLES,
    SOURCE,
    TRIED,
    Job,
    Refused,
    Report,
    Request,
    Route,
)
from .source import finite
from .source_name import SourceKind

Array = npt.NDArray[np.generic]

MEMORY_BYTES_MAX: Final = 4 << 30
UNTRUSTED_LIMITS: Final = ChildLimits(timeout_s=120.0, threads=1, memory_bytes=MEMORY_BYTES_MAX)
_REPORT_BYTES_MAX: Final = 1 << 20
_LABELS_MAX: Final = 100_000
_DISTRUST: Final = "do not open it elsewhere; get the model from someone you trust, or as an .onnx file"
_MODULE: Final = f"{__package__}.opened"


@dataclass(frozen=True, slots=True)
class Opened:
    """What came out of the sandbox. `answers` are the original's to the samples that went in."""

    model: bytes
    answers: Array
    labels: tuple[str, ...]
    scores: ScoreKind | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class UntrustedFile:
    """A file that is opened in the sandbox each time it is asked."""

    content: bytes
    name: str
    kind: SourceKind
    limits: ChildLimits = UNTRUSTED_LIMITS

    @property
    def warning(self) -> str:
        """What a user is always told of such a file."""
        return f"{self.name} is untrusted: to open it runs code that is in it, so it was opened in a process without network or files"

    def convert(self, samples: Array) -> Opened:
        """Open the file, make an ONNX model of it, and ask the original.

        Args:
            samples: [2 or more, ...] as the model takes them.

        Raises:
            ConfigError: The samples do not fit, or this machine cannot confine a process.
            ArtifactError: The file did what no model needs, or holds no model that can become ONNX.
            BudgetError: It took too much memory.
        """
        try:
            return self._run(Job.CONVERT, Route.DIRECT, samples, "the data")
        except _NoDirectWayError:
            return self._run(Job.CONVERT, Route.BY_TORCH, samples, "the data")

    def answers(self, samples: Array, what: str) -> Array:
        """Open the file and return its answers [samples, ...].

        Raises:
            ConfigError: The samples do not fit, or this machine cannot confine a process.
            ArtifactError: The file did what no model needs.
            BudgetError: It took too much memory.
        """
        return self._run(Job.ANSWER, Route.DIRECT, samples, what).answers

    def _run(self, job: Job, route: Route, samples: Array, what: str) -> Opened:
        with tempfile.TemporaryDirectory(prefix="edgeml-sandbox-") as place:
            folder = Path(place)
            (folder / SOURCE).write_bytes(self.content)
            np.save(folder / SAMPLES, np.ascontiguousarray(samples), allow_pickle=False)
            request = Request(
                job,
                route,
                self.kind,
                self.limits.timeout_s,
                self.limits.memory_bytes or MEMORY_BYTES_MAX,
                self.name,
                what,
            )
            (folder / REQUEST).write_bytes(msgspec.json.encode(request))
            for name in (MODEL, ANSWERS, REPORT, TRIED):
                (folder / name).touch()
            stopped = self._open(folder)
            self._check_tried(folder)
            if stopped is not None:
                raise stopped
            report = self._read_report(folder / REPORT)
            _raise(report, self.name)
            answers = finite(self._read_answers(folder / ANSWERS, len(samples)), what)
            model = _read(folder / MODEL, OUTPUT_BYTES_MAX) if job is Job.CONVERT else b""
        labels = tuple(one_line(one) for one in report.labels[:_LABELS_MAX])
        return Opened(model, answers, labels, report.scores, tuple(map(one_line, report.warnings[:8])))

    def _open(self, folder: Path) -> ArtifactError | None:
        """Run the child; return how it was stopped, to be raised unless something better is known."""
        command = [sys.executable, "-P", "-m", _MODULE, str(folder), str(os.getpid())]
        try:
            run_child(command, folder, self.limits, "opened it")
        except BudgetError as error:
            return BudgetError(
                f"{self.name} was stopped: it takes more memory than {error.budget:.0f} bytes",
                budget=error.budget, observed=error.observed, unit="bytes", hint=_DISTRUST,
            )  # fmt: skip
        except BackendError as error:
            return ArtifactError(
                f"{self.name} was stopped while it was opened: {error.message}", hint=_DISTRUST
            )
        return None

    def _check_tried(self, folder: Path) -> None:
        tried = _read(folder / TRIED, _REPORT_BYTES_MAX).decode("utf-8", "replace").splitlines()
        if tried:
            raise ArtifactError(
                f"{self.name} tried to {one_line(tried[0])}, which no model needs; it could not, and was refused",
                hint=_DISTRUST,
            )

    def _read_report(self, path: Path) -> Report:
        try:
            return msgspec.json.decode(_read(path, _REPORT_BYTES_MAX), type=Report)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._garbage() from error

    def _read_answers(self, path: Path, samples: int) -> Array:
        try:
            _check_file(path, OUTPUT_BYTES_MAX)
            # Mapped first: a header that promises more than the file holds is refused before anything is allocated.
            answers: Array = np.array(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError, OverflowError, SyntaxError) as error:
            raise self._garbage() from error
        if answers.ndim < 2 or len(answers) != samples or answers.dtype.kind != "f":
            raise ArtifactError(
                f"{self.name} answers {samples} samples with {answers.dtype} of shape {list(answers.shape)}",
                hint="a model gives one row of numbers per sample",
            )
        return answers

    def _garbage(self) -> ArtifactError:
        return ArtifactError(f"{self.name} left nothing readable when it was opened", hint=_DISTRUST)


class _NoDirectWayError(Exception):
    """The usual converter does not know it; there is another one."""


def _raise(report: Report, name: str) -> None:
    message, hint = one_line(report.message), one_line(report.hint)
    match report.refused:
        case Refused.NOT:
            return
        case Refused.USER:
            raise ConfigError(message, hint=hint)
        case Refused.CONTENT:
            raise ArtifactError(message, hint=hint)
        case Refused.NO_DIRECT_WAY:
            raise _NoDirectWayError
        case Refused.MEMORY:
            limit = report.memory_bytes
            raise BudgetError(
                f"{name} was stopped: it takes more memory than {limit} bytes",
                budget=limit, observed=limit, unit="bytes", hint=_DISTRUST,
            )  # fmt: skip


def _read(path: Path, most_bytes: int) -> bytes:
    _check_file(path, most_bytes)
    return path.read_bytes()


def _check_file(path: Path, most_bytes: int) -> None:
    """Refuse what the child can have put in a file's place.

    Raises:
        ArtifactError: It is no plain file, or too large.
    """
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > most_bytes:
        raise ArtifactError(
            "the process that opened the file left something else than results", hint=_DISTRUST
        )
