"""An agent inside another program: arrays in, arrays out, without HTTP.

Decides what the path names (a bundle, or a device's settings), where the model runs, and how arrays become what a
worker takes and gives. With settings it is the whole agent: it takes updates, counts, and sends its telemetry. With a
bundle it serves that one file. Needs numpy; the device's own supervisor never imports this file.
"""

from __future__ import annotations

import enum
import os
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

import numpy as np
import numpy.typing as npt

from edgeml.errors import BackendError, ConfigError, EdgemlError, IncompatibleError
from edgeml.ids import Digest, digest_of_file
from edgeml.inference import Prediction
from edgeml.manifest import Manifest
from edgeml.tensors import DType

from .config import load
from .ipc import LoadRequest, TensorBytes
from .line import NO_DEADLINE, LateError
from .notify import Notifier
from .service import Service
from .serving import NoModelError, Served, Serving
from .supervisor import Supervisor, WorkerLimits, check_request
from .worker import LoadedModel, tensor_bytes

__all__ = ["Agent", "Mode"]

START_TIMEOUT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 10.0
_NUMPY: Final = {dtype: np.dtype(dtype.value) for dtype in DType}

Array = npt.NDArray[np.generic]


class Mode(enum.Enum):
    """Where the model runs."""

    WORKER = "worker"
    """In a process of its own: a crash in native code costs one answer, and the memory comes back."""
    IN_PROCESS = "in-process"
    """In this process: the least time an answer, and no protection from the model. Bundles only."""


class Agent:
    """Serves a model to this program. Use as a context manager; `infer` may be called from several threads.

    >>> import numpy as np, tempfile
    >>> from edgeml.testing import sample_bundle
    >>> path = Path(tempfile.mkdtemp()) / "sample.edgeml"
    >>> digest = sample_bundle(path)
    >>> with Agent(path, Mode.IN_PROCESS) as agent:
    ...     prediction = agent.infer({"x": np.zeros((1, 4), np.float32)})
    >>> prediction.model, prediction.outputs["logits"].shape
    ('sample', (1, 3))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        mode: Mode = Mode.WORKER,
        *,
        digest: Digest | None = None,
        threads: int = 1,
    ) -> None:
        """Say what is to be served; nothing starts yet.

        Args:
            path: a bundle (`.edgeml`), or the settings of a device (`.toml`). With settings the whole agent runs in
                this process, so no other one may run on the same storage.
            mode: where the model runs. An update is proven in a worker before it serves, so settings need a worker.
            digest: what the bundle must be, lowercase SHA-256; None: whatever lies there is believed.
            threads: how many the runtime may use; settings have their own.

        Raises:
            ConfigError: The two do not go together.
        """
        self._path = Path(path)
        self._is_device = self._path.suffix == ".toml"
        if self._is_device and mode is Mode.IN_PROCESS:
            raise ConfigError(
                f"{self._path} are settings of a device, whose models run in workers",
                hint="give a bundle, or leave the mode away",
            )
        self._mode = mode
        self._digest = digest
        self._threads = threads
        self._source: _Source | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(self) -> None:
        """Load the model, or start the device's agent and let it load what is installed.

        Raises:
            ConfigError: The path or what it says is wrong, or another agent runs on the same storage.
            ArtifactError: The bundle is not what it should be, or cannot be run here.
            StorageError: The disk refused.
        """
        if self._source is not None:
            return
        if self._is_device:
            self._source = _Device(self._path)
            return
        if not self._path.is_file():
            raise ConfigError(
                f"no bundle at {self._path}", hint="edgeml convert and edgeml package write bundles"
            )
        digest = self._digest or digest_of_file(self._path)
        if self._mode is Mode.IN_PROCESS:
            self._source = _Inside(self._path, digest, self._threads)
        else:
            self._source = _Outside(self._path, digest, self._threads)

    def close(self) -> None:
        """Stop everything that was started."""
        source, self._source = self._source, None
        if source is not None:
            source.close()

    @property
    def models(self) -> tuple[str, ...]:
        """Which models serve now."""
        return () if self._source is None else self._source.models()

    def manifest(self, model: str | None = None) -> Manifest | None:
        """What serves under a name now, or what serves if it is one; None if nothing does.

        Raises:
            ConfigError: No name is given, and several models serve.
        """
        source = self._source
        if source is None or not source.models():
            return None
        return source.manifest(_name(source, model))

    def infer(
        self,
        inputs: Mapping[str, Array],
        *,
        model: str | None = None,
        request_id: str = "",
        timeout_s: float | None = None,
    ) -> Prediction:
        """Answer one request.

        Args:
            inputs: an array for each of the model's inputs, by name, of its type and shape: float32 [1, 4] for
                example. Nothing is converted silently.
            model: which one; None: the one that serves.
            request_id: what the request is called in `feedback`; empty: it gets a name if it can have feedback.
            timeout_s: how long it may wait for its turn; None: as long as that takes.

        Returns:
            Outputs by name, in the model's order; from a worker they are read-only.

        Raises:
            ConfigError: The arrays are not what the model takes, or several models serve and none is named.
            NoModelError: Nothing serves under this name, or a worker is being restarted: ask again later.
            BudgetError: Too many requests wait already: ask less often.
            LateError: Its turn did not come in time, and it was not run.
            BackendError: The model refused the arrays, or its worker hung or died of them.
        """
        source = self._source
        if source is None:
            raise NoModelError("the agent is not running", hint="use it in a with statement, or call start()")
        return source.infer(_name(source, model), inputs, request_id, _deadline_s(timeout_s))

    def feedback(self, request_id: str, label: int | str, *, model: str | None = None) -> bool:
        """Say what an earlier request really showed; False if that request is not remembered.

        Raises:
            ConfigError: The label is none of the model's, or a bundle serves, which nobody counts.
        """
        if not isinstance(self._source, _Device):
            raise ConfigError(
                "a bundle's answers are not counted", hint="open the device's agent.toml instead"
            )
        return self._source.feedback(_name(self._source, model), request_id, label)


class _Source(Protocol):
    """Where answers come from."""

    def models(self) -> tuple[str, ...]: ...

    def manifest(self, model: str) -> Manifest | None: ...

    def infer(
        self, model: str, inputs: Mapping[str, Array], request_id: str, deadline_s: float
    ) -> Prediction: ...

    def close(self) -> None: ...


class _Inside:
    """A model in this process."""

    def __init__(self, path: Path, digest: Digest, threads: int) -> None:
        self._model = LoadedModel(LoadRequest(str(path), digest, threads))
        self._manifest = self._model.manifest
        self._names = [spec.name for spec in self._manifest.surface.inputs]
        self._outputs = [spec.name for spec in self._manifest.surface.outputs]
        # A LiteRT interpreter is for one thread at a time.
        self._turn = threading.Lock()
        self._fitting: list[tuple[np.dtype[np.generic], tuple[int, ...]]] = []

    def models(self) -> tuple[str, ...]:
        return (self._manifest.model,)

    def manifest(self, model: str) -> Manifest:
        _check_name(model, self._manifest)
        return self._manifest

    def infer(
        self, model: str, inputs: Mapping[str, Array], request_id: str, deadline_s: float
    ) -> Prediction:
        _check_name(model, self._manifest)
        arrays = _ordered(inputs, self._names)
        looks = [(array.dtype, array.shape) for array in arrays]
        if looks != self._fitting:
            check_request([_tensor(array) for array in arrays], self._manifest.surface.inputs)
            self._fitting = looks
        if deadline_s == NO_DEADLINE:
            self._turn.acquire()
        elif not self._turn.acquire(timeout=max(deadline_s - time.monotonic(), 0.0)):
            raise LateError(self._manifest.release)
        try:
            started_ns = time.perf_counter_ns()
            try:
                _, _, outputs, predicted = self._model.answer(self._model.guard.admit(arrays))
            except EdgemlError:
                raise
            except Exception as error:  # what a worker would answer, in the same words
                raise BackendError(f"the model failed: {type(error).__name__} {error}") from error
            latency_us = (time.perf_counter_ns() - started_ns) / 1000
        finally:
            self._turn.release()
        named = dict(zip(self._outputs, outputs, strict=True))
        return _prediction(self._manifest, request_id, named, latency_us, predicted)

    def close(self) -> None:
        del self._model


class _Outside:
    """A bundle in a worker, which is started again when it dies."""

    def __init__(self, path: Path, digest: Digest, threads: int) -> None:
        self._supervisor = Supervisor()
        try:
            worker = self._supervisor.load(path, digest, WorkerLimits(threads=threads))
        except BaseException:
            self._supervisor.close()
            raise
        self._manifest = worker.manifest
        self._names = [spec.name for spec in worker.manifest.surface.inputs]
        self._serving = Serving(self._supervisor)
        self._serving.swap(worker)

    def models(self) -> tuple[str, ...]:
        return (self._manifest.model,)

    def manifest(self, model: str) -> Manifest:
        _check_name(model, self._manifest)
        return self._manifest

    def infer(
        self, model: str, inputs: Mapping[str, Array], request_id: str, deadline_s: float
    ) -> Prediction:
        _check_name(model, self._manifest)
        return _unpacked(self._serving.infer(_packed(inputs, self._names), deadline_s), request_id)

    def close(self) -> None:
        self._serving.close()
        self._supervisor.close()


class _Device:
    """The whole agent of a device, in a thread."""

    def __init__(self, path: Path) -> None:
        self._service = Service(load(path), path)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="agent", daemon=True)
        self._thread.start()
        if not self._service.started.wait(START_TIMEOUT_S) or self._error is not None:
            self.close()
            raise self._error or BackendError(f"the agent did not start within {START_TIMEOUT_S:g} s")

    def models(self) -> tuple[str, ...]:
        return self._service.answering.models()

    def manifest(self, model: str) -> Manifest | None:
        return self._service.answering.manifest(model)

    def infer(
        self, model: str, inputs: Mapping[str, Array], request_id: str, deadline_s: float
    ) -> Prediction:
        manifest = self.manifest(model)
        if manifest is None:
            raise NoModelError(
                f"no model {model[:60]} serves on this device", hint="assign or flash a release of it"
            )
        tensors = _packed(inputs, [spec.name for spec in manifest.surface.inputs])
        name = request_id or uuid.uuid4().hex
        return _unpacked(self._service.answering.infer(model, tensors, name, deadline_s), name)

    def feedback(self, model: str, request_id: str, label: int | str) -> bool:
        return self._service.answering.feedback(model, request_id, label)

    def close(self) -> None:
        self._service.stop()
        self._thread.join(STOP_TIMEOUT_S)

    def _run(self) -> None:
        try:
            # Whether the program is ready and alive, its own code knows, not the agent.
            self._service.work(Notifier({}))
        except BaseException as error:  # raised in the thread that waits
            self._error = error
        finally:
            self._service.started.set()


def _name(source: _Source, model: str | None) -> str:
    """Name the model that is meant: the given one, or the only one."""
    if model is not None:
        return model
    models = source.models()
    if not models:
        raise NoModelError("no model serves on this device", hint="assign or flash a release")
    if len(models) > 1:
        raise ConfigError(f"{len(models)} models serve here", hint=f"say which: {', '.join(models)}")
    return models[0]


def _check_name(model: str, manifest: Manifest) -> None:
    if model != manifest.model:
        raise NoModelError(f"no model {model[:60]} serves here; {manifest.model} does")


def _deadline_s(timeout_s: float | None) -> float:
    return NO_DEADLINE if timeout_s is None else time.monotonic() + timeout_s


def _ordered(inputs: Mapping[str, Array], names: Sequence[str]) -> list[Array]:
    if len(inputs) != len(names) or any(name not in inputs for name in names):
        raise ConfigError(f"inputs {sorted(inputs)} given, the model takes {list(names)}")
    return [np.asarray(inputs[name]) for name in names]


def _packed(inputs: Mapping[str, Array], names: Sequence[str]) -> list[TensorBytes]:
    return [_tensor(array) for array in _ordered(inputs, names)]


def _tensor(array: Array) -> TensorBytes:
    try:
        return tensor_bytes(array)
    except IncompatibleError as error:
        raise ConfigError(f"an input is {array.dtype}, which no model takes") from error


def _unpacked(served: Served, request_id: str) -> Prediction:
    answer = served.answer
    outputs = {
        spec.name: np.frombuffer(one.data, _NUMPY[one.dtype]).reshape(one.shape)
        for spec, one in zip(served.manifest.surface.outputs, answer.outputs, strict=True)
    }
    return _prediction(served.manifest, request_id, outputs, answer.latency_us, answer.predicted)


def _prediction(
    manifest: Manifest,
    request_id: str,
    outputs: Mapping[str, Array],
    latency_us: float,
    predicted: int | None,
) -> Prediction:
    labels = manifest.labels
    label = labels[predicted] if predicted is not None and predicted < len(labels) else None
    return Prediction(manifest.model, manifest.version, request_id, outputs, latency_us, predicted, label)
