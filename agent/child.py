"""A worker process as its parent holds it: forked, spoken to, outlived.

Decides how its end is noticed (a pipe that it alone keeps open), and which error that becomes. How it is forked is
`forkserver`'s business, what is asked and answered, `supervisor`'s.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, TypeVar

from edgeml.errors import BackendError, ManifestError

from . import area
from .area import Areas
from .channel import Channel, Frame
from .forkserver import LOST, RUNNING, ForkServer
from .ipc import Buffer, Failure, Kind, decode_message

logger = logging.getLogger(__name__)

REAP_TIMEOUT_S: Final = 2.0
"""The kernel needs this long at most to end a process, unless its disk hangs."""
REAP_PAUSE_S: Final = 0.001
_Answer = TypeVar("_Answer")


class Child:
    """One worker process. `ask` is for one thread at a time; the rest may be used from any."""

    def __init__(self, forkserver: ForkServer) -> None:
        """Fork it.

        Raises:
            BackendError: The machine has no process or memory left for it.
        """
        ours, theirs = socket.socketpair()
        lifeline, held = os.pipe()
        memory = _shared_memory()
        try:
            areas = None if memory is None else Areas(memory)
            with theirs:
                self.pid = forkserver.fork(theirs, held, memory)
        except BaseException:
            ours.close()
            os.close(lifeline)
            raise
        finally:
            # Were ours open too, the end of the child would not be seen.
            os.close(held)
            if memory is not None:
                os.close(memory)
        self._forkserver = forkserver
        self._lifeline = lifeline
        self._ending = threading.RLock()
        self._channel = Channel(ours) if areas is None else Channel(ours, areas.requests, areas.answers)
        self._request_id = 0
        self._end = ""

    @property
    def end(self) -> str:
        """How it ended, for example `died of SIGSEGV`; empty while it is usable."""
        return self._end

    def ask(
        self, kind: Kind, parts: Sequence[Buffer], decode: Callable[[memoryview], _Answer], timeout_s: float
    ) -> _Answer:
        """Send a request and return its decoded answer. A child that hangs or talks nonsense is killed.

        Raises:
            EdgemlError: What the worker answered instead.
            BackendError: It hung, died, or was dead already.
        """
        return self.finish(self.begin(kind, parts, timeout_s), kind, decode, timeout_s)

    @property
    def descriptor(self) -> int:
        """What becomes readable when there is an answer, or never will be one."""
        return self._channel.descriptor

    def begin(self, kind: Kind, parts: Sequence[Buffer], timeout_s: float) -> int:
        """Send a request and return its id; `finish` must follow.

        Raises:
            BackendError: It does not read, died, or was dead already.
        """
        if self._end:
            raise self._gone()
        self._request_id = request_id = (self._request_id + 1) & 0xFFFFFFFF
        try:
            self._channel.send(kind, request_id, parts, timeout_s)
        except TimeoutError:
            self.kill(f"did not answer within {timeout_s:g} s and was killed")
        except OSError:
            self.kill("")
        else:
            return request_id
        raise self._gone()

    def finish(
        self, request_id: int, kind: Kind, decode: Callable[[memoryview], _Answer], timeout_s: float
    ) -> _Answer:
        """Wait for the answer to a request and decode it.

        Raises:
            EdgemlError: As `ask`.
        """
        failure = None
        try:
            frame = self._channel.receive(timeout_s)
            if frame.kind == kind + 1 and frame.request_id == request_id:
                return decode(frame.payload)
            failure = _failure(frame, request_id)
        except TimeoutError:
            self.kill(f"did not answer within {timeout_s:g} s and was killed")
        except (EOFError, OSError):
            self.kill("")
        except ManifestError as error:
            self.kill(f"said something that is no answer and was killed: {error.message}")
        if failure is not None:
            raise failure.error()
        raise self._gone()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until the process is gone; tell whether it is."""
        poll = select.poll()
        with self._ending:
            if self._lifeline < 0:
                return True
            # A copy: another thread may close ours while this one waits.
            lifeline = os.dup(self._lifeline)
        try:
            poll.register(lifeline, select.POLLIN)
            return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
        finally:
            os.close(lifeline)

    def kill(self, reason: str) -> None:
        """Make sure that the process is gone. `reason` says why, if it is not what it died of."""
        if not reason and not self.wait(REAP_TIMEOUT_S):
            reason = "closed its connection and was killed"
        with self._ending:
            if not self.wait(0):
                # Said before it is done: whoever waits for an answer sees the end at once and asks why.
                self._end = self._end or reason
                with suppress(ProcessLookupError):
                    os.kill(self.pid, signal.SIGKILL)
        if not self.wait(REAP_TIMEOUT_S):
            logger.error("worker %d cannot be killed", self.pid)
        with self._ending:
            if self._lifeline >= 0 and self.wait(0):
                os.close(self._lifeline)
                self._lifeline = -1
                observed = _describe(self._reaped())
                self._end = self._end or reason or observed
            self._end = self._end or reason

    def close(self) -> None:
        """Close the connection of a child that is gone."""
        self._channel.close()

    def _gone(self) -> BackendError:
        hint = (
            "the kernel kills workers first when memory is short; see its log"
            if "SIGKILL" in self._end
            else ""
        )
        return BackendError(f"the worker {self._end}", hint=hint)

    def _reaped(self) -> int:
        """Ask how it ended; the kernel says so a moment after its descriptors are closed."""
        until_s = time.monotonic() + REAP_TIMEOUT_S
        while (status := self._forkserver.reap(self.pid)) == RUNNING and time.monotonic() < until_s:
            time.sleep(REAP_PAUSE_S)
        return status


def _shared_memory() -> int | None:
    try:
        return area.create()
    except OSError as error:
        # An old kernel, a sandbox, no descriptor left: tensors then go through the socket.
        logger.info("no memory is shared with the worker: %s", error)
        return None


def _failure(frame: Frame, request_id: int) -> Failure:
    if frame.kind is not Kind.FAILURE or frame.request_id != request_id:
        raise ManifestError("the answer to another question")
    return decode_message(frame.payload, Failure)


def _describe(exit_code: int) -> str:
    if exit_code in {RUNNING, LOST}:
        return "vanished"
    if exit_code >= 0:
        return f"exited with {exit_code}"
    try:
        return f"died of {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"died of signal {-exit_code}"
