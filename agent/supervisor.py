"""Loads variants into workers and speaks with them.

Decides what is asked of a worker, how long it may take, and that a request which does not fit the model never reaches
it. Who waits for it is `line`'s business. This process has no numpy and no runtime: a tensor is bytes here. Forking and the end of
processes is `child`'s business; which worker serves, `serving`'s.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final, Protocol, TypeAlias

import msgspec

from edgeml.errors import BackendError, BudgetError, ConfigError
from edgeml.ids import Digest, ModelName
from edgeml.manifest import Manifest
from edgeml.tensors import DType, TensorSpec

from .batch import Rules
from .child import Child
from .forkserver import ForkServer
from .health import GoldenRun
from .ipc import (
    PAYLOAD_BYTES_MAX,
    RANK_MAX,
    Answer,
    Kind,
    LoadRequest,
    LoadResult,
    Taken,
    TensorBytes,
    decode_answer,
    decode_message,
    encode_heads,
    encode_message,
    encode_tensors,
)
from .line import NO_DEADLINE, Line
from .misfit import DTYPE, SCHEMA, MisfitError
from .sensors import Sensors

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 2.0
TENSOR_BYTES_MAX: Final = PAYLOAD_BYTES_MAX - (64 << 10)
"""All tensors of a request together; the rest of a frame is for their heads."""
_Looks: TypeAlias = tuple[tuple[int, ...], int, DType]
_RUNTIMES: Final = ("onnxruntime", "ai_edge_litert", "tflite_runtime")
_MODULES: Final = {
    "ai_edge_litert": "ai_edge_litert.interpreter",
    "tflite_runtime": "tflite_runtime.interpreter",
}


class WorkerLimits(msgspec.Struct, frozen=True):
    """How long a worker may take, what it may use, for which model, and how requests wait for it."""

    load_timeout_s: float = 60.0
    request_timeout_s: float = 10.0
    threads: int = 1
    line: Rules = Rules()
    memory_bytes: int | None = None
    """The most it may take where the kernel can be told; None is no limit."""
    model: ModelName = ModelName("model")
    """Names its control group."""


class Confines(Protocol):
    """What holds a worker to its budget."""

    def place(self, pid: int, model: ModelName, memory_bytes: int | None) -> None:
        """Confine a process that has not loaded anything yet."""
        ...


class Worker:
    """A loaded variant, answering. Safe to use from several threads: one call is in flight at a time."""

    def __init__(
        self, forkserver: ForkServer, path: Path, digest: Digest, limits: WorkerLimits,
        confines: Confines | None = None,
    ) -> None:  # fmt: skip
        """Fork a process, confine it, and wait until it has loaded the bundle.

        Raises:
            ArtifactError: What the worker refused the bundle for.
            ConfigError: The bundle cannot be read.
            BackendError: The worker hung or died while it loaded.
        """
        self.path = path
        self.digest = digest
        self.limits = limits
        self._sensors = Sensors()
        self._known: tuple[list[_Looks], bytes] | None = None
        self._turn = threading.Lock()
        started_s = time.monotonic()
        self._child = Child(forkserver)
        if confines is not None:
            confines.place(self._child.pid, limits.model, limits.memory_bytes)
        request = LoadRequest(str(path), digest, limits.threads)
        decode = partial(decode_message, kind=LoadResult)
        try:
            loaded = self._child.ask(Kind.LOAD, encode_message(request), decode, limits.load_timeout_s)
        except BaseException:
            self._child.kill("could not load its bundle")
            self._child.close()
            raise
        self.load_ms = (time.monotonic() - started_s) * 1000
        self.manifest: Manifest = loaded.manifest
        self.runtime: str = loaded.runtime
        self.latency_slow_ms: float | None = loaded.latency_slow_ms
        self._line = Line(self.manifest, limits.line, self.answer)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._child.pid

    @property
    def request_timeout_s(self) -> float:
        """How long a request may take."""
        return self.limits.request_timeout_s

    @property
    def alive(self) -> bool:
        """Whether it can still answer."""
        return not self._child.end and not self._child.wait(0)

    def infer(self, tensors: Sequence[TensorBytes], deadline_s: float = NO_DEADLINE) -> Answer:
        """Answer one request when its turn comes.

        Args:
            tensors: what callers of the manifest give, in its order.
            deadline_s: until when it may wait for its turn, on the monotonic clock.

        Raises:
            ConfigError: The tensors are not what the model takes; the worker never saw them.
            OverloadError: As many requests wait already as may.
            LateError: The deadline passed before its turn came; the worker never saw them.
            BackendError: The model refused them, or the worker hung or died.
        """
        self._checked(tensors)
        return self._line.ask(tensors, deadline_s)

    def golden(self) -> GoldenRun:
        """Answer the bundle's golden vectors; they are not counted as inferences.

        Raises:
            ArtifactError: The bundle has none or has changed.
            BackendError: The model refused them, or the worker hung or died.
        """
        with self._turn:
            return self._child.ask(
                Kind.GOLDEN, [], partial(decode_message, kind=GoldenRun), self.limits.load_timeout_s
            )

    def take(self) -> Taken:
        """Take what was counted since the last call.

        Raises:
            BudgetError: Requests kept it busy for `request_timeout_s`; it goes on counting, so ask again later.
            BackendError: The worker hung or died; what it had counted is lost.
        """
        # Not for ever: whoever asks is the agent's main loop, and the turn goes to no one in order.
        timeout_s = self.limits.request_timeout_s
        if not self._turn.acquire(timeout=timeout_s):
            raise BudgetError(
                f"{self.manifest.release} was busy for {timeout_s:g} s",
                budget=timeout_s,
                observed=timeout_s,
                unit="s",
            )
        try:
            return self._child.ask(Kind.TAKE, [], partial(decode_message, kind=Taken), timeout_s)
        finally:
            self._turn.release()

    def kill(self, reason: str) -> None:
        """End the process at once; whoever waits for an answer gets a BackendError with the reason."""
        self._child.kill(reason)

    def memory_bytes(self) -> int:
        """Resident memory now; 0 when the worker is dead."""
        return (self._sensors.rss_bytes(self.pid) or 0) if self.alive else 0

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until the process is gone; tell whether it is."""
        return self._child.wait(timeout_s)

    def end(self) -> str:
        """Say how the process ended, for example `died of SIGSEGV`; call when `wait` said that it is gone."""
        self._child.kill("")
        return self._child.end

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Let the request in flight finish, then end the process; kill it if that takes longer than `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        if not self._turn.acquire(timeout=timeout_s):
            # The request in flight ends with the process, and gives the turn back.
            self._child.kill("was stopped while it answered")
            self._turn.acquire()
        try:
            if self.alive:
                left_s = max(deadline_s - time.monotonic(), 0.1)
                self._child.ask(Kind.STOP, [], _nothing, left_s)
                self._child.wait(left_s)
        except BackendError as error:
            logger.warning("%s while it was stopped", error.message)
        finally:
            self._child.kill("was stopped")
            self._child.close()
            self._turn.release()

    async def infer_in_loop(self, tensors: Sequence[TensorBytes], deadline_s: float = NO_DEADLINE) -> Answer:
        """The same for an event loop, without a thread. What does not fit into shared memory may hold the loop up.

        Raises:
            EdgemlError: As `infer`.
        """
        # Not at the top: a device without an endpoint has no event loop in memory.
        from .loop import ask

        self._checked(tensors)
        return await ask(self._line, self, tensors, deadline_s)

    def begin(self, tensors: Sequence[TensorBytes]) -> int | None:
        """Send a request now; None if somebody else speaks with the worker. `finish` must follow; nobody else can.

        Raises:
            BackendError: The worker died.
        """
        parts = encode_tensors(tensors, self._checked(tensors))
        if not self._turn.acquire(blocking=False):
            return None
        try:
            return self._child.begin(Kind.INFER, parts, self.limits.request_timeout_s)
        except BaseException:
            self._turn.release()
            raise

    def finish(self, request_id: int, timeout_s: float) -> Answer:
        """Wait for the answer to what was begun.

        Raises:
            BackendError: The model refused the request, or the worker hung or died.
        """
        try:
            return self._child.finish(request_id, Kind.INFER, decode_answer, timeout_s)
        finally:
            self._turn.release()

    @property
    def descriptor(self) -> int:
        """What becomes readable when what was begun can be finished."""
        return self._child.descriptor

    def answer(self, tensors: Sequence[TensorBytes]) -> Answer:
        """Answer one request at once, past the line, once nobody else speaks with the worker.

        Raises:
            BackendError: As `infer`.
        """
        parts = encode_tensors(tensors, self._checked(tensors))
        with self._turn:
            return self._child.ask(Kind.INFER, parts, decode_answer, self.limits.request_timeout_s)

    def _checked(self, tensors: Sequence[TensorBytes]) -> bytes:
        """Check tensors and return their heads; both are known if the last request looked the same."""
        looks: list[_Looks] = [(tensor.shape, len(tensor.data), tensor.dtype) for tensor in tensors]
        known = self._known
        if known is not None and looks == known[0]:
            return known[1]
        check_request(tensors, self.manifest.surface.inputs)
        heads = encode_heads(tensors)
        self._known = (looks, heads)
        return heads


class Supervisor:
    """Where workers come from."""

    def __init__(self, forkserver: ForkServer | None = None, confines: Confines | None = None) -> None:
        """Take workers from a forkserver; by default from a new one with the first runtime that is installed."""
        self._confines = confines
        self._forkserver = forkserver or ForkServer(installed_preload())
        self._owned = forkserver is None
        self._listing = threading.Lock()
        self._workers: list[Worker] = []

    def start(self) -> None:
        """Start the forkserver, which needs about a second for its imports; returns at once."""
        self._forkserver.start()

    def shared_bytes(self) -> int:
        """Memory that all workers share, about: the forkserver's. 0 before there is one."""
        pid = self._forkserver.pid
        return 0 if pid is None else Sensors().rss_bytes(pid) or 0

    def load(self, path: Path, digest: Digest, limits: WorkerLimits | None = None) -> Worker:
        """Load a bundle into a new worker, which checks its digest first.

        Raises:
            ArtifactError: What the worker refused the bundle for.
            ConfigError: The bundle cannot be read.
            BackendError: The worker hung or died while it loaded.
        """
        worker = Worker(self._forkserver, path.resolve(), digest, limits or WorkerLimits(), self._confines)
        with self._listing:
            self._workers = [*(one for one in self._workers if one.alive), worker]
        return worker

    def close(self) -> None:
        """Stop every worker that still runs, and the forkserver unless it is shared."""
        with self._listing:
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.stop()
        if self._owned:
            self._forkserver.close()


def installed_preload() -> tuple[str, ...]:
    """Modules that make workers start quickly: numpy, the first runtime that is installed, and the worker's own.

    Others are imported when a worker needs them.
    """
    runtimes = [_MODULES.get(name, name) for name in _RUNTIMES if importlib.util.find_spec(name) is not None]
    return ("numpy", *runtimes[:1], f"{__package__}.worker")


def check_request(tensors: Sequence[TensorBytes], inputs: Sequence[TensorSpec]) -> None:
    """Check that tensors are what a model takes: number, types, shapes, lengths.

    Raises:
        MisfitError: They are not.
        ConfigError: They are longer than a frame.
    """
    if len(tensors) != len(inputs):
        raise MisfitError(
            f"{len(tensors)} inputs given, the model takes {len(inputs)}",
            SCHEMA,
            hint=f"give {', '.join(spec.name for spec in inputs)}",
        )
    total = 0
    for tensor, spec in zip(tensors, inputs, strict=True):
        if tensor.dtype is not spec.dtype:
            raise MisfitError(
                f"{spec.name} is {tensor.dtype.value}, the model takes {spec.dtype.value}", DTYPE
            )
        shape = tensor.shape
        if shape != spec.shape and not _fits(shape, spec.shape):
            raise MisfitError(
                f"{spec.name} has shape {list(shape)}, the model takes {list(spec.shape)}",
                SCHEMA,
                hint="-1 is a dimension that you choose",
            )
        size = spec.dtype.item_bytes
        for dimension in shape:
            size *= dimension
        if len(tensor.data) != size:
            raise MisfitError(
                f"{spec.name} has {len(tensor.data)} bytes of data, its shape needs {size}", SCHEMA
            )
        total += size
    if total > TENSOR_BYTES_MAX:
        raise ConfigError(f"the inputs have {total} bytes, more than {TENSOR_BYTES_MAX}")


def _fits(shape: tuple[int, ...], stated: tuple[int, ...]) -> bool:
    same_rank = len(shape) == len(stated) <= RANK_MAX
    return same_rank and all(
        size == want or (want < 0 < size) for size, want in zip(shape, stated, strict=True)
    )


def _nothing(_payload: memoryview) -> None:
    """Decode the answer to a request that has none."""
