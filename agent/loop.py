"""Asking a worker from an event loop, without a thread.

Decides how a coroutine stands in the same line as threads do, and how it waits for the worker's socket. Handing a
request to a thread and its answer back takes longer than a small model (`benchmarks/agent.py`). Only the endpoint
imports this file: an event loop is 4 MB that a device without an endpoint does not have.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from starlette.concurrency import run_in_threadpool

from edgeml.errors import EdgemlError

from .ipc import Answer, TensorBytes
from .line import NO_DEADLINE, Line, Ticket

OVERDUE_S = 0.001
"""How long to wait once more for an answer whose time is over, before its worker counts as hung."""


class Answerer(Protocol):
    """A worker, as far as it is needed here."""

    @property
    def descriptor(self) -> int:
        """What becomes readable when what was begun can be finished."""
        ...

    @property
    def request_timeout_s(self) -> float:
        """How long a request may take."""
        ...

    def begin(self, tensors: Sequence[TensorBytes]) -> int | None:
        """Send a request; None if somebody else speaks with the worker. Raises BackendError."""
        ...

    def finish(self, request_id: int, timeout_s: float) -> Answer:
        """Wait for its answer. Raises BackendError."""
        ...

    def answer(self, tensors: Sequence[TensorBytes]) -> Answer:
        """Do both, in a thread, when nobody else speaks with the worker. Raises BackendError."""
        ...


async def ask(line: Line, worker: Answerer, tensors: Sequence[TensorBytes], deadline_s: float) -> Answer:
    """Answer one request when its turn comes.

    Raises:
        EdgemlError: As `Line.ask`.
    """
    if line.batches:
        # Whoever is at the head waits for others, as threads do.
        return await run_in_threadpool(line.ask, tensors, deadline_s)
    request = _Request(line, worker, tensors, deadline_s)
    line.enter(request)
    try:
        request.begin()
        await request.done
        if request.leads:
            await request.answer_in_thread()
    finally:
        request.end()
    return request.answer()


class _Request(Ticket):
    """A coroutine's ticket. `done` is set when there is an outcome, or when it is at the head and needs a thread."""

    __slots__ = ("_alarm", "_line", "_thread", "_worker", "done", "loop", "wire")

    def __init__(
        self, line: Line, worker: Answerer, tensors: Sequence[TensorBytes], deadline_s: float
    ) -> None:
        super().__init__(tensors, deadline_s)
        self._line = line
        self._worker = worker
        self._thread = threading.get_ident()
        self._alarm: asyncio.TimerHandle | None = None
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.wire: _Wire | None = None
        """On which it was sent, as long as its answer has not come."""

    def begin(self) -> None:
        """Send it if it is at the head; else see to it that it does not wait too long."""
        if self.leads:
            _Wire(self.loop, self._line, self._worker).run(self)
        elif self.deadline_s != NO_DEADLINE:
            left_s = max(self.deadline_s - time.monotonic(), 0.0)
            self._alarm = self.loop.call_later(left_s, self._late)

    def wake(self) -> None:
        # Whoever leaves the head in this thread starts the next itself, once the line's lock is free.
        if threading.get_ident() != self._thread:
            self.loop.call_soon_threadsafe(self._woken)

    async def answer_in_thread(self) -> None:
        """Answer it, at the head, when somebody past the line has finished with the worker."""
        started_s = time.monotonic()
        try:
            self.outcome = await run_in_threadpool(self._worker.answer, self.tensors)
        except EdgemlError as error:
            self.outcome = error
        finally:
            self._line.took(time.monotonic() - started_s)

    def end(self) -> None:
        """Leave the line, if that has not been done."""
        if self._alarm is not None:
            self._alarm.cancel()
        if self.wire is not None:
            # Cancelled. The answer still has to be taken from the socket, or the next request would get it.
            self.wire.take(self._worker.request_timeout_s)
        elif self.outcome is None or self.leads:
            following = self._line.leave(self)
            if isinstance(following, _Request) and following.loop is self.loop:
                following.begin()

    def settle(self) -> None:
        """Let the coroutine go on."""
        if not self.done.done():
            self.done.set_result(None)

    def _woken(self) -> None:
        if self.leads and self.wire is None and self.outcome is None and not self.done.done():
            self.begin()
        else:
            self.settle()

    def _late(self) -> None:
        if self._line.give_up(self):
            self.settle()


class _Wire:
    """A worker's socket, watched for as long as one request of this loop follows another.

    The next request is sent in the same breath in which the answer before it came: until then the worker is idle, and
    to watch a socket again costs more system calls than all the rest.
    """

    __slots__ = ("_current", "_descriptor", "_id", "_line", "_loop", "_sent_s", "_timer", "_worker")

    def __init__(self, loop: asyncio.AbstractEventLoop, line: Line, worker: Answerer) -> None:
        self._loop = loop
        self._line = line
        self._worker = worker
        self._current: _Request | None = None
        self._descriptor = -1
        """Of the socket while it is watched."""
        self._timer: asyncio.TimerHandle | None = None
        self._id = 0
        self._sent_s = 0.0

    def run(self, request: _Request) -> None:
        """Send the request at the head, or what follows if it ends at once."""
        self._go_on(request)

    def _go_on(self, head: Ticket | None) -> None:
        while isinstance(head, _Request) and head.loop is self._loop:
            if self._sends(head):
                return
            if head.outcome is None:
                head.settle()
                break
            head = self._passed_on(head)
        self._forget()

    def take(self, timeout_s: float) -> None:
        """Take the answer from the socket, for which it may wait, and go on with the next request."""
        request = self._current
        assert request is not None
        try:
            request.outcome = self._worker.finish(self._id, timeout_s)
        except EdgemlError as error:
            request.outcome = error
        finally:
            # Whatever else it was, it must not hold up those behind.
            self._current = request.wire = None
            self._line.took(time.monotonic() - self._sent_s)
            self._go_on(self._passed_on(request))

    def _sends(self, request: _Request) -> bool:
        """Send a request; if not, it has an outcome, or needs a thread."""
        self._sent_s = time.monotonic()
        if request.deadline_s <= self._sent_s:
            request.outcome = self._line.late()
            return False
        try:
            request_id = self._worker.begin(request.tensors)
        except EdgemlError as error:
            request.outcome = error
            return False
        except Exception:
            # Its coroutine, not whoever was before it, runs into it again in a thread.
            return False
        if request_id is None:
            return False
        self._id = request_id
        self._current, request.wire = request, self
        if self._descriptor < 0:
            self._watch()
        return True

    def _passed_on(self, request: _Request) -> Ticket | None:
        following = self._line.leave(request)
        request.settle()
        return following

    def _watch(self) -> None:
        self._descriptor = self._worker.descriptor
        self._loop.add_reader(self._descriptor, self._readable)
        # uvloop lets nothing block that it watches. Threads speak with the worker, too, and wait in the kernel.
        os.set_blocking(self._descriptor, True)
        self._timer = self._loop.call_later(self._worker.request_timeout_s, self._look_at_the_clock)

    def _forget(self) -> None:
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            self._descriptor = -1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _readable(self) -> None:
        self.take(self._worker.request_timeout_s)

    def _look_at_the_clock(self) -> None:
        """One timer for all requests that follow each other: most of them need none."""
        left_s = self._sent_s + self._worker.request_timeout_s - time.monotonic()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._look_at_the_clock)
        else:
            self.take(OVERDUE_S)
