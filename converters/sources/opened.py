"""Runs inside the sandbox: opens a file that nobody vouches for, writes an ONNX model and answers, and ends.

Decides the order: files are opened for writing, the process is confined, libraries are loaded, system calls are taken
away, it is tried whether that holds, and only then the file is opened. What is reported here is for people and for the
parent to check (`untrusted.py`); it guarantees nothing, for from the opening on the process may be the file's.
"""

from __future__ import annotations

import enum
import math
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec

from edgeml.child import one_line
from edgeml.errors import BackendError, ConfigError, EdgemlError
from edgeml.lifeline import die_with_parent
from edgeml.manifest import ScoreKind

from ..quiet import first_line, quiet
from ..sandbox.breakout import check_sandbox
from ..sandbox.confinement import Allowance, confine, seal
from .source_name import SourceKind

if TYPE_CHECKING:
    # Not at run time: whoever is not confined yet starts no threads, and arrays bring some.
    import numpy as np
    import numpy.typing as npt

    from .estimator import Estimator

    Array = npt.NDArray[np.generic]

SOURCE: Final = "source.bin"
SAMPLES: Final = "samples.npy"
REQUEST: Final = "request.json"
MODEL: Final = "model.onnx"
ANSWERS: Final = "answers.npy"
REPORT: Final = "report.json"
TRIED: Final = "tried.txt"
OUTPUT_BYTES_MAX: Final = 1 << 30
_WRITES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_TRIED_LINES_MAX: Final = 20
_PROGRAMS: Final = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pty.spawn"}
_PROCESSES: Final = {"os.fork", "os.forkpty"}
_FILES: Final = {
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown", "os.utime",
}  # fmt: skip
_SIGNALS: Final = {"os.kill", "os.killpg", "signal.pthread_kill"}


class Job(enum.Enum):
    """What is wanted."""

    CONVERT = "convert"
    ANSWER = "answer"


class Route(enum.Enum):
    """How an estimator becomes ONNX: by skl2onnx, or by torch, which has to be loaded beforehand."""

    DIRECT = "direct"
    BY_TORCH = "by-torch"


class Refused(enum.Enum):
    """Why there is no result."""

    NOT = "not"
    USER = "user"
    CONTENT = "content"
    MEMORY = "memory"
    NO_DIRECT_WAY = "no-direct-way"


class Request(msgspec.Struct, frozen=True):
    """What the parent wants. `name` and `what` name the file and the samples in messages."""

    job: Job
    route: Route
    kind: SourceKind
    timeout_s: float
    memory_bytes: int
    name: str
    what: str


class Report(msgspec.Struct, frozen=True):
    """What the child says. Foreign text: to be checked before it is shown."""

    refused: Refused = Refused.NOT
    message: str = ""
    hint: str = ""
    memory_bytes: int = 0
    labels: tuple[str, ...] = ()
    scores: ScoreKind | None = None
    warnings: tuple[str, ...] = ()


def _serve(folder: Path) -> None:
    request = msgspec.json.decode((folder / REQUEST).read_bytes(), type=Request)
    with (
        (folder / REPORT).open("wb") as report,
        (folder / MODEL).open("wb") as model,
        (folder / ANSWERS).open("wb") as answers,
        (folder / TRIED).open("wb", buffering=0) as tried,
        (folder / SOURCE).open("rb") as source,
    ):
        report.write(msgspec.json.encode(_answer(request, folder, tried, _Files(source, model, answers))))


class _Files(msgspec.Struct, frozen=True):
    source: Any
    model: Any
    answers: Any


def _answer(request: Request, folder: Path, tried: IO[bytes], files: _Files) -> Report:
    try:
        _enter(request, folder)
        sys.addaudithook(_Telltale(tried))
        return _work(request, folder, files)
    except MemoryError:
        return Report(Refused.MEMORY, memory_bytes=request.memory_bytes)
    except _NoDirectWayError:
        return Report(Refused.NO_DIRECT_WAY)
    except ConfigError as error:
        return Report(Refused.USER, error.message, error.hint)
    except EdgemlError as error:
        return Report(Refused.CONTENT, error.message, error.hint)


def _enter(request: Request, folder: Path) -> None:
    """Confine this process, with all libraries that it will need.

    Raises:
        ConfigError: This machine does not confine it.
    """
    sys.dont_write_bytecode = True
    os.environ["JOBLIB_MULTIPROCESSING"] = "0"  # which asks for semaphores as soon as it is imported
    os.environ.pop("HOME", None)
    allowance = Allowance(
        memory_bytes=request.memory_bytes,
        processor_s=math.ceil(request.timeout_s) + 5,
        file_bytes=OUTPUT_BYTES_MAX,
    )
    confine(allowance, [folder])
    tempfile.tempdir = str(
        folder
    )  # some libraries ask for one as soon as they are imported; nothing is written to it
    try:
        with quiet():
            _load_libraries(request)
    except (ImportError, OSError) as error:
        raise ConfigError(
            f"{request.name} was not opened: a library cannot be loaded in the sandbox: {first_line(error)}",
            hint="run `edgeml doctor`",
        ) from error
    seal()
    check_sandbox(folder)


def _load_libraries(request: Request) -> None:
    """Load what cannot be loaded any more once system calls are taken away; the rest is loaded when it is needed."""
    import numpy as np  # noqa: F401  # loaded beforehand, used later

    if request.kind is SourceKind.PICKLE:
        import joblib  # noqa: F401
    if request.kind is SourceKind.TORCHSCRIPT:
        import torch.onnx  # noqa: F401
    if request.route is Route.BY_TORCH:
        import hummingbird.ml  # noqa: F401


class _Telltale:
    """Writes down what the file's code asks Python for and cannot have. Code that goes around Python is stopped untold."""

    def __init__(self, tried: IO[bytes]) -> None:
        self._tried = tried
        self._lines = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        told = attempt_of(event, arguments)
        if told and self._lines < _TRIED_LINES_MAX:
            self._lines += 1
            self._tried.write(f"{told}\n".encode("utf-8", "replace"))


def attempt_of(event: str, arguments: tuple[Any, ...]) -> str:
    """Say in words what an audit event of Python asks for, if no model needs it; empty otherwise."""
    if event.startswith("socket.") and event != "socket.gethostname":
        return "reach a network"
    if event in _PROGRAMS:
        return f"start a program: {_shown(arguments[0])}"
    if event in _PROCESSES:
        return "start a process"
    if event in _SIGNALS:
        return "end a process"
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES
    if event in _FILES or writes:
        return f"write to {_shown(arguments[0])}"
    return ""


def _shown(argument: Any) -> str:
    text = os.fsdecode(argument) if isinstance(argument, str | bytes) else str(argument)
    return repr(text[:80])


class _NoDirectWayError(Exception):
    """skl2onnx does not know the estimator."""


def _work(request: Request, folder: Path, files: _Files) -> Report:
    import numpy as np

    samples = np.load(folder / SAMPLES, allow_pickle=False)
    if request.kind is SourceKind.TORCHSCRIPT:
        return _script(request, samples, files)
    return _estimator(request, samples, files)


def _script(request: Request, samples: Array, files: _Files) -> Report:
    import numpy as np
    import torch

    from edgeml.ids import Digest

    from .torch_model import TorchModel, ask
    from .torchscript import export_script

    torch.set_num_threads(1)
    with quiet():
        try:
            module = torch.jit.load(files.source, map_location="cpu").eval()
        except Exception as error:  # torch raises errors of many kinds for a file it cannot read
            raise BackendError(
                f"{request.name} cannot be opened: {first_line(error)}",
                hint="save it again with torch.jit.script(model).save(...)",
            ) from error
    answers = ask(TorchModel(module, batch_is_free=True, sha256=Digest("")), samples, request.what)
    np.save(files.answers, answers, allow_pickle=False)
    if request.job is Job.CONVERT:
        files.model.write(export_script(module, samples))
    return Report()


def _estimator(request: Request, samples: Array, files: _Files) -> Report:
    import numpy as np

    from .estimator import estimator_of, is_estimator

    found, warnings = _unpickled(request, files.source)
    if not is_estimator(found):
        raise BackendError(
            f"{request.name} holds a {type(found).__name__}, no scikit-learn estimator",
            hint="save the fitted estimator or pipeline itself",
        )
    estimator = estimator_of(found, request.name)
    np.save(files.answers, estimator.answers(samples, request.what), allow_pickle=False)
    if request.job is Job.CONVERT:
        files.model.write(_translated(request, estimator, samples))
    return Report(labels=estimator.labels, scores=estimator.scores, warnings=warnings)


def _translated(request: Request, estimator: Estimator, samples: Array) -> bytes:
    if request.route is Route.BY_TORCH:
        from .estimator_torch import translate_by_torch

        return translate_by_torch(estimator, samples)
    from .estimator_onnx import translate

    try:
        return translate(estimator, samples)
    except BackendError as error:
        raise _NoDirectWayError from error


def _unpickled(request: Request, source: IO[bytes]) -> tuple[Any, tuple[str, ...]]:
    """Open a pickle, and say what scikit-learn warns of: it was written by another version."""
    import warnings

    import joblib

    with quiet(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = joblib.load(source)
        except MemoryError:
            raise
        except (Exception, SystemExit) as error:  # the file's own code may raise anything
            raise BackendError(
                f"{request.name} cannot be opened: {first_line(error)}",
                hint="it must hold a scikit-learn estimator and need no code of yours; else write file.py:factory that loads it",
            ) from error
    versions = [one for one in caught if one.category.__name__ == "InconsistentVersionWarning"]
    return found, tuple(f"{request.name}: {one_line(str(one.message))}" for one in versions[:1])


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]), signal.SIGKILL)
    _serve(Path(sys.argv[1]))
