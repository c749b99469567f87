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
    loop = asyncio.get_running_loop()
    woken: asyncio.Future[None] = loop.create_future()
    here = threading.get_ident()

    def wake() -> None:
        if threading.get_ident() == here:
            _set(woken)
        else:
            loop.call_soon_threadsafe(_set, woken)

    ticket = line.enter(tensors, deadline_s, wake)
    try:
        if not ticket.leads:
            await _wait(line, ticket, woken)
        if ticket.leads:
            await _lead(line, worker, ticket)
    finally:
        passed_on = line.leave(ticket)
    if passed_on:
        # Whose turn it is now sends its request before this answer is written: the worker would be idle meanwhile.
        await asyncio.sleep(0)
    return ticket.answer()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _wait(line: Line, ticket: Ticket, woken: asyncio.Future[None]) -> None:
    """Wait until the ticket is at the head, or late."""
    deadline_s = ticket.waiting.deadline_s
    if deadline_s == NO_DEADLINE:
        await woken
        return
    loop = asyncio.get_running_loop()
    timer = loop.call_later(max(deadline_s - time.monotonic(), 0.0), _set, woken)
    try:
        await woken
    finally:
        timer.cancel()
    if not ticket.leads:
        line.give_up(ticket)


async def _lead(line: Line, worker: Answerer, ticket: Ticket) -> None:
    """Run the request at the head of the line."""
    started_s = time.monotonic()
    if ticket.waiting.deadline_s <= started_s:
        ticket.outcome = line.late()
        return
    try:
        ticket.outcome = await _call(worker, ticket.tensors)
    except EdgemlError as error:
        ticket.outcome = error
    finally:
        line.took(time.monotonic() - started_s)


async def _call(worker: Answerer, tensors: Sequence[TensorBytes]) -> Answer:
    request_id = worker.begin(tensors)
    if request_id is None:
        return await run_in_threadpool(worker.answer, tensors)
    timeout_s = worker.request_timeout_s
    try:
        overdue = await _readable(worker.descriptor, timeout_s)
    except BaseException:
        # Cancelled. The answer still has to be taken from the socket, or the next request would get it.
        worker.finish(request_id, timeout_s)
        raise
    return worker.finish(request_id, OVERDUE_S if overdue else timeout_s)


async def _readable(descriptor: int, timeout_s: float) -> bool:
    """Wait until a descriptor is readable; tell whether that took too long."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _set, readable)
    began_s = time.monotonic()
    timer = loop.call_later(timeout_s, _set, readable)
    try:
        await readable
    finally:
        timer.cancel()
        loop.remove_reader(descriptor)
        # uvloop lets nothing block that it watched. Threads speak with the worker, too, and wait in the kernel.
        os.set_blocking(descriptor, True)
    return time.monotonic() - began_s >= timeout_s
