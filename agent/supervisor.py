"""Starts workers, talks to them, and notices when they hang or die.

Decides how a worker is forked (a forkserver that has imported the runtime and holds no model), how long it may take,
and which error tells the caller what became of it. This process has no numpy and no runtime: a tensor is bytes here.
What a worker does with a request is `worker`'s business; which worker serves, `serving`'s.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType
from typing import Final, TypeVar

import msgspec

from edgeml.errors import BackendError, BudgetError, ConfigError, ManifestError
from edgeml.ids import Digest
from edgeml.manifest import Manifest
from edgeml.tensors import BATCH, TensorSpec

from .health import GoldenRun
from .ipc import (
    PAYLOAD_BYTES_MAX,
    RANK_MAX,
    Answer,
    Channel,
    Failure,
    Frame,
    Kind,
    LoadRequest,
    LoadResult,
    Taken,
    TensorBytes,
    decode_answer,
    decode_message,
    encode_message,
    encode_tensors,
)
from .sensors import Sensors

logger = logging.getLogger(__name__)

WAITING_MAX: Final = 16
"""Requests that may wait for one worker; more are turned away."""
STOP_TIMEOUT_S: Final = 2.0
REAP_TIMEOUT_S: Final = 2.0
FRAME_BYTES_RESERVED: Final = 64 << 10
"""Part of a frame that is left for the heads of its tensors."""
_RUNTIME_MODULES: Final = ("onnxruntime", "ai_edge_litert.interpreter", "tflite_runtime.interpreter")
_processes = threading.Lock()
"""Guards multiprocessing's own lists and exit codes, which several threads may not look at at once."""
_Message = TypeVar("_Message")


class WorkerLimits(msgspec.Struct, frozen=True):
    """How long a worker may take, and how many threads its runtime may use."""

    load_timeout_s: float = 60.0
    request_timeout_s: float = 10.0
    threads: int = 1


class Worker:
    """A running worker, seen from the supervisor. Safe to use from several threads: one request is in flight at a time."""

    def __init__(self, process: BaseProcess, channel: Channel, request: LoadRequest, limits: WorkerLimits) -> None:
        """Wait until the worker has loaded its bundle. `Supervisor.load` is what callers use."""
        self.path = Path(request.path)
        self.digest = request.digest
        self.limits = limits
        self._process = process
        self._channel = channel
        self._sensors = Sensors()
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(WAITING_MAX)
        self._request_id = 0
        self._death = ""
        started_s = time.monotonic()
        loaded = self._ask_message(Kind.LOAD, encode_message(request), LoadResult, limits.load_timeout_s)
        self.load_ms = (time.monotonic() - started_s) * 1000
        self.manifest: Manifest = loaded.manifest
        self.runtime: str = loaded.runtime

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid or 0

    @property
    def alive(self) -> bool:
        """Whether it can still answer."""
        return not self._death and not self.wait(0)

    def infer(self, tensors: Sequence[TensorBytes]) -> Answer:
        """Answer one request.

        Args:
            tensors: the manifest's inputs, in its order.

        Raises:
            ConfigError: The tensors are not what the model takes; the worker never saw them.
            BudgetError: WAITING_MAX requests wait already.
            BackendError: The model refused them, or the worker hung or died.
        """
        check_request(tensors, self.manifest.inputs)
        parts = encode_tensors(tensors)
        if not self._turn.acquire(blocking=False):
            if not self._places.acquire(blocking=False):
                message = f"{WAITING_MAX} requests wait for {self.manifest.release} already"
                raise BudgetError(message, budget=WAITING_MAX, observed=WAITING_MAX + 1, unit="requests", hint="ask less often")
            try:
                # Whoever is ahead is bounded by its own timeout, so each turn comes.
                self._turn.acquire()
            finally:
                self._places.release()
        try:
            frame = self._exchange(Kind.INFER, parts, Kind.ANSWER, self.limits.request_timeout_s)
            return self._decoded(decode_answer, frame)
        finally:
            self._turn.release()

    def golden(self) -> GoldenRun:
        """Answer the bundle's golden vectors; they are not counted as inferences.

        Raises:
            ArtifactError: The bundle has none or has changed.
            BackendError: The model refused them, or the worker hung or died.
        """
        with self._turn:
            return self._ask_message(Kind.GOLDEN, [], GoldenRun, self.limits.load_timeout_s)

    def take(self) -> Taken:
        """Take what was counted since the last call.

        Raises:
            BackendError: The worker hung or died; its counts are lost.
        """
        with self._turn:
            return self._ask_message(Kind.TAKE, [], Taken, self.limits.request_timeout_s)

    def memory_bytes(self) -> int:
        """Resident memory now; 0 when it is dead."""
        return (self._sensors.rss_bytes(self.pid) or 0) if self.alive else 0

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until the process is gone; tell whether it is."""
        poll = select.poll()
        try:
            poll.register(self._process.sentinel, select.POLLIN)
        except ValueError:
            return True  # closed: it was waited for
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Let the request in flight finish, then end the process; kill it if it takes longer than `timeout_s`."""
        deadline_s = time.monotonic() + timeout_s
        if self._turn.acquire(timeout=timeout_s):
            try:
                if not self._death:
                    self._channel.send(Kind.STOP, 0, [], timeout_s)
                    self.wait(max(deadline_s - time.monotonic(), 0))
            except OSError:
                logger.debug("worker %d was gone before it was stopped", self.pid)
            finally:
                self._bury("was stopped", kill=True)
                self._turn.release()
        else:
            # Killing makes the holder of the turn see the end of its request; it cleans up.
            self._kill()

    def _ask_message(self, kind: Kind, parts: Sequence[bytes | bytearray | memoryview], answer: type[_Message], timeout_s: float) -> _Message:
        frame = self._exchange(kind, parts, _ANSWERS[kind], timeout_s)
        return self._decoded(lambda payload: decode_message(payload, answer), frame)

    def _exchange(self, kind: Kind, parts: Sequence[bytes | bytearray | memoryview], wanted: Kind, timeout_s: float) -> Frame:
        """Send a request and wait for its answer. The caller holds the turn."""
        if self._death:
            raise BackendError(f"the worker {self._death}", hint=_hint(self._death))
        self._request_id = request_id = (self._request_id + 1) & 0xFFFFFFFF
        try:
            self._channel.send(kind, request_id, parts, timeout_s)
            frame = self._channel.receive(timeout_s)
        except TimeoutError as error:
            self._bury(f"did not answer within {timeout_s:g} s and was killed", kill=True)
            raise BackendError(f"the worker {self._death}", hint=_hint(self._death)) from error
        except (EOFError, OSError) as error:
            self._bury("", kill=False)
            raise BackendError(f"the worker {self._death}", hint=_hint(self._death)) from error
        except ManifestError as error:
            raise self._garbled(error) from error
        if frame.request_id != request_id or frame.kind not in {wanted, Kind.FAILURE}:
            raise self._garbled(ManifestError("an answer to another question"))
        if frame.kind is Kind.FAILURE:
            raise self._decoded(lambda payload: decode_message(payload, Failure), frame).error()
        return frame

    def _decoded(self, decode, frame):
        try:
            return decode(frame.payload)
        except ManifestError as error:
            raise self._garbled(error) from error
