"""The worker: the process that holds one model.

Decides what happens between a request's bytes and an answer's, and nothing else: it loads one verified bundle, answers
one request at a time in its only thread through the bundle's steps and model, counts what it saw, and exits when the supervisor is gone. Native code of
runtimes may crash here without hurting anyone. Starting, timing out and restarting it is `supervisor`'s business.
"""

from __future__ import annotations

import logging
import os
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
import numpy.typing as npt

from edgeml import golden as golden_vectors
from edgeml import monitor as monitor_format
from edgeml.bundle import Bundle, read_verified
from edgeml.errors import ArtifactError, EdgemlError, IncompatibleError
from edgeml.manifest import GOLDEN, MONITOR, Manifest, Task
from edgeml.monitor import Monitor
from edgeml.observer import Observer
from edgeml.pipeline import Pipeline
from edgeml.runtime import Session, open_session
from edgeml.tensors import DType, TensorSpec

from .area import Areas
from .channel import JOINED_BYTES_MAX, Channel, Frame
from .guard import Guard
from .health import GoldenRun
from .ipc import (
    Answer,
    Failure,
    Kind,
    Layout,
    LoadRequest,
    LoadResult,
    Taken,
    TensorBytes,
    decode_message,
    encode_answer,
    encode_message,
    read_layout,
)
from .sensors import Sensors

logger = logging.getLogger(__name__)

PROCESS_NAME: Final = "edgeml-worker"
OOM_SCORE: Final = 500
"""Above the supervisor's: when memory runs out, the kernel takes a worker before it or anything else on the device."""
OOM_SCORE_MAX: Final = 1000
_BUFFERS: Final = 3
"""A channel's own, and two slots of shared memory."""
_RESET_PEAK: Final = b"5"
_NUMPY: Final = {dtype: np.dtype(dtype.value) for dtype in DType}
_DTYPES: Final = {numpy: dtype for dtype, numpy in _NUMPY.items()}

Array = npt.NDArray[np.generic]


def main(stream: socket.socket, lifeline: int, memory: int | None = None) -> NoReturn:
    """Serve one model over a socket until told to stop or until the other end closes.

    `lifeline` is a descriptor that stays open as long as this process lives; `memory`, one of what the supervisor shares.
    """
    _settle(frozenset({stream.fileno(), lifeline} | ({memory} if memory is not None else set())))
    if memory is None:
        channel = Channel(stream)
    else:
        areas = Areas(memory)
        os.close(memory)
        channel = Channel(stream, areas.answers, areas.requests)
    try:
        Service(channel).run()
    except (EOFError, OSError):
        # The supervisor is gone: nobody is left to tell.
        os._exit(1)
    os._exit(0)


class Service:
    """One loaded model and its counts."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._memory = PeakMemory()
        self._inputs = InputArrays()
        self._model: LoadedModel | None = None

    def run(self) -> None:
        """Answer frames until STOP.

        Raises:
            EOFError: The supervisor closed its end.
            OSError: The connection failed.
        """
        while True:
            frame = self._channel.receive()
            if frame.kind is Kind.STOP:
                self._channel.send(Kind.STOPPED, frame.request_id, [])
                return
            try:
                self._handle(frame)
            except OSError:
                raise
            except (
                Exception
            ) as error:  # the process boundary: whatever a model or runtime raises goes to the caller
                if not isinstance(error, EdgemlError):
                    logger.exception("%s failed unexpectedly", frame.kind.name.lower())
                self._channel.send(Kind.FAILURE, frame.request_id, encode_message(Failure.of(error)))

    def _handle(self, frame: Frame) -> None:
        if frame.kind is Kind.LOAD:
            request = decode_message(frame.payload, LoadRequest)
            self._model = LoadedModel(request)
            loaded = LoadResult(
                manifest=self._model.manifest,
                runtime=self._model.session.runtime,
                memory_bytes=self._memory.highest_bytes(),
                latency_slow_ms=self._model.latency_slow_ms,
            )
            self._channel.send(Kind.LOADED, frame.request_id, encode_message(loaded))
            return
        model = self._model
        if model is None:
            raise RuntimeError(f"{frame.kind.name} before a model was loaded")
        match frame.kind:
            case Kind.INFER:
                self._infer(model, frame)
            case Kind.GOLDEN:
                run = model.compare(self._memory)
                self._channel.send(Kind.COMPARED, frame.request_id, encode_message(run))
            case Kind.TAKE:
                self._channel.send(Kind.TAKEN, frame.request_id, encode_message(model.take(self._memory)))
            case _:
                raise RuntimeError(f"{frame.kind.name} is no request")

    def _infer(self, model: LoadedModel, frame: Frame) -> None:
        started_ns = time.perf_counter_ns()
        given = model.guard.admit(self._inputs.view(frame.payload))
        inputs, outputs, results, predicted = model.answer(given)
        latency_us = (time.perf_counter_ns() - started_ns) / 1000
        answer = Answer(tuple(map(tensor_bytes, results)), latency_us, predicted)
        self._channel.send(Kind.ANSWER, frame.request_id, encode_answer(answer))
        # Counting comes after the answer is on its way: the caller never waits for it.
        if model.observer is not None:
            try:
                model.observer.observe(model.pipeline.watched(given, inputs), outputs)
            except (
                Exception
            ):  # the answer is out, so there is no one to tell; serving matters more than counting
                logger.exception("counting stops: the monitor does not fit what the model takes or gives")
                model.observer = None


class LoadedModel:
    """A verified bundle, loaded.

    Raises:
        ArtifactError: The bundle is not the one that is meant, or cannot be used.
        ConfigError: It cannot be read.
    """

    def __init__(self, request: LoadRequest) -> None:
        path = Path(request.path)
        with read_verified(path, request.digest) as bundle:
            self.manifest: Manifest = bundle.manifest
            monitor = monitor_format.decode(bundle.read(MONITOR)) if bundle.has(MONITOR) else None
            self.session: Session = open_session(bundle.model(), self.manifest.runtime, request.threads)
        _check_alike(self.session.inputs, self.manifest.inputs, "inputs")
        _check_alike(self.session.outputs, self.manifest.outputs, "outputs")
        self.guard = Guard(self.manifest.expected, self.manifest.surface.inputs)
        self.pipeline = Pipeline(self.manifest)
        self.latency_slow_ms = None if monitor is None else monitor.latency_slow_ms
        self.observer = None if monitor is None else self._observer(monitor)
        self._path = path
        self._request = request
        self._classifies = self.manifest.task is Task.CLASSIFICATION

    def _observer(self, monitor: Monitor) -> Observer | None:
        watched = self.manifest.watched
        used = {column.tensor for column in monitor.columns}
        specs = [spec for spec in (*watched.inputs, *watched.outputs) if spec.name in used]
        missing = used - {spec.name for spec in specs}
        if missing:
            # Of the bundle alone, so no other device would do better with it.
            raise ArtifactError(f"the monitor counts {min(missing)}, which the model neither takes nor gives")
        free = [spec.name for spec in specs if not spec.shape or any(size < 0 for size in spec.sample_shape)]
        if free:
            logger.warning("%s has no fixed shape; nothing is counted", free[0])
            return None
        return Observer(monitor, watched)

    def answer(
        self, given: Sequence[Array]
    ) -> tuple[Sequence[Array], list[Array], Sequence[Array], int | None]:
        """Answer one request that the guard has admitted.

        Returns:
            What the model took, what it gave, what the caller gets, and the class if there is one sample and the
            model classifies.

        Raises:
            EdgemlError: A step or the runtime refused the arrays or failed.
        """
        inputs = self.pipeline.prepare(given)
        outputs = self.session.run(inputs)
        predicted = self._predicted(inputs, outputs)
        return inputs, outputs, self.pipeline.finish(inputs, outputs), predicted

    def _predicted(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> int | None:
        if not self._classifies or (inputs[0].ndim and len(inputs[0]) != 1) or not outputs[0].size:
            return None
        return int(outputs[0].argmax())

    def compare(self, memory: PeakMemory) -> GoldenRun:
        """Answer the golden vectors, without counting them.

        Raises:
            ArtifactError: The bundle has none, or is no longer the one that was loaded.
        """
        with read_verified(self._path, self._request.digest) as bundle:
            recorded = _read_golden(bundle)
        leading = self.manifest.inputs[0].shape[0] if self.manifest.inputs[0].shape else 1
        step = max(leading, 1)
        requests = [
            [array[i : i + step] for array in recorded.inputs] for i in range(0, recorded.samples, step)
        ]
        answers = [self.pipeline.answer(self.session.run, request) for request in requests]
        durations_ns = []
        for request in requests:
            started_ns = time.perf_counter_ns()
            self.pipeline.answer(self.session.run, request)
            durations_ns.append(time.perf_counter_ns() - started_ns)
        observed = [np.concatenate([answer[i] for answer in answers]) for i in range(len(recorded.outputs))]
        result = golden_vectors.compare(recorded.outputs, observed, self.manifest)
        return GoldenRun(
            agreement=result.agreement,
            difference_fraction=result.difference_fraction,
            passed=result.passed,
            latency_p50_ms=statistics.median(durations_ns) / 1e6,
            peak_memory_bytes=memory.highest_bytes(),
        )

    def take(self, memory: PeakMemory) -> Taken:
        """Return what was counted since the last call."""
        highest_bytes = memory.restart()
        quality = self.guard.take()
        if self.observer is None:
            return Taken(None, 0, highest_bytes, quality)
        observation = self.observer.take()
        return Taken(observation.sketch, observation.low_confidence, highest_bytes, quality)


class PeakMemory:
    """This process' highest resident memory, of its life and since a mark."""

    def __init__(self) -> None:
        self._sensors = Sensors()
        self._earlier_bytes = 0

    def highest_bytes(self) -> int:
        """Highest since the process started."""
        return max(self._earlier_bytes, self._marked_bytes())

    def restart(self) -> int:
        """Return the highest since the last call, and start again."""
        highest = self._marked_bytes()
        self._earlier_bytes = max(self._earlier_bytes, highest)
        _write("/proc/self/clear_refs", _RESET_PEAK)
        return highest

    def _marked_bytes(self) -> int:
        return self._sensors.peak_rss_bytes(os.getpid()) or 0


class InputArrays:
    """Views the tensors of requests as arrays, without copying.

    Requests of one model nearly always look alike and lie in the same few buffers, so the last views of each are kept.
    """

    def __init__(self) -> None:
        self._known: list[tuple[object, Layout, list[Array]]] = []

    def view(self, payload: memoryview) -> list[Array]:
        """Return arrays that are valid as long as the payload is.

        Raises:
            ManifestError: The payload is not tensors.
        """
        layout = read_layout(payload)
        for buffer, known, arrays in self._known:
            if known is layout and buffer is payload.obj:
                return arrays
        arrays = [
            np.frombuffer(payload[start:end], _NUMPY[dtype]).reshape(shape)
            for dtype, shape, (start, end) in zip(layout.dtypes, layout.shapes, layout.spans, strict=True)
        ]
        self._known = [(payload.obj, layout, arrays), *self._known[: _BUFFERS - 1]]
        return arrays


def tensor_bytes(array: Array) -> TensorBytes:
    """Turn an array into a tensor; large ones in C order are not copied.

    Raises:
        IncompatibleError: Its type is none that edgeml serves.
    """
    dtype = _DTYPES.get(array.dtype)
    if dtype is None:
        raise IncompatibleError(f"the model gave {array.dtype}, which edgeml does not serve")
    if array.nbytes <= JOINED_BYTES_MAX:
        return TensorBytes(dtype, array.shape, array.tobytes())
    return TensorBytes(dtype, array.shape, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _read_golden(bundle: Bundle) -> golden_vectors.Golden:
    return golden_vectors.decode(bundle.read(GOLDEN), bundle.manifest)


def _check_alike(found: Sequence[TensorSpec], stated: Sequence[TensorSpec], what: str) -> None:
    """Refuse a manifest that describes another model: requests are checked by it."""
    alike = len(found) == len(stated) and all(
        _fit(one, other) for one, other in zip(found, stated, strict=True)
    )
    if not alike:
        raise IncompatibleError(
            f"the model's {what} are not the ones its manifest states", hint="build the bundle again"
        )


def _fit(found: TensorSpec, stated: TensorSpec) -> bool:
    same_rank = len(found.shape) == len(stated.shape)
    return (
        found.dtype is stated.dtype
        and same_rank
        and all(a == b or a < 0 or b < 0 for a, b in zip(found.shape, stated.shape, strict=True))
    )


def _settle(kept: frozenset[int]) -> None:
    """Make a forked process a worker: its own name, no foreign descriptors, first to go when memory is short."""
    _write("/proc/self/comm", PROCESS_NAME.encode())
    inherited = Sensors().oom_score_adj(os.getpid()) or 0
    _write("/proc/self/oom_score_adj", str(min(inherited + OOM_SCORE, OOM_SCORE_MAX)).encode())
    for descriptor in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if descriptor > 2 and descriptor not in kept:
            # The listing's own descriptor is closed already.
            with suppress(OSError):
                os.close(descriptor)


def _write(path: str, data: bytes) -> None:
    """Write a kernel file; a kernel or a container may forbid it, and nothing depends on it."""
    try:
        fd = os.open(path, os.O_WRONLY)
    except OSError:
        return
    try:
        os.write(fd, data)
    except OSError:
        logger.debug("%s cannot be written", path)
    finally:
        os.close(fd)
