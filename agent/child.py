"""A worker process as its parent holds it: forked, spoken to, outlived.

Decides how it is forked (a forkserver that has imported the runtime and holds no model, whatever this program's main
module is), how its end is noticed, and which error that becomes. What is asked and answered is `supervisor`'s business.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Final, TypeVar

from edgeml.errors import BackendError, ManifestError

from .channel import Channel, Frame
from .ipc import Buffer, Failure, Kind, decode_message

logger = logging.getLogger(__name__)

REAP_TIMEOUT_S: Final = 2.0
"""The kernel needs this long at most to end a process, unless its disk hangs."""
_LOST_EXIT_CODE: Final = 255
"""What multiprocessing says of a process whose forkserver is gone."""
_ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_Answer = TypeVar("_Answer")
_forking = threading.RLock()
"""multiprocessing keeps lists and exit codes that several threads may not look at at once."""


def start_forkserver(preload: Sequence[str]) -> None:
    """Start the process that workers are forked from; it imports `preload` meanwhile.

    There is one in a process. It ends with this process, also when this one is killed.
    """
    for name in _ONE_THREAD:
        # Threads that a library starts on import would not survive the fork. What the runtime may use is set per model.
        os.environ.setdefault(name, "1")
    with _forking:
        forkserver.set_forkserver_preload(
            [f"{__package__}.apart", *preload, f"{__package__}.worker", __name__]
        )
        forkserver.ensure_running()


class Child:
    """One worker process. `ask` is for one thread at a time; the rest may be used from any."""

    def __init__(self) -> None:
        """Fork it.

        Raises:
            BackendError: The machine has no process or memory left for it.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs, _forking, _no_main_module():
                process = multiprocessing.get_context("forkserver").Process(
                    target=_enter, args=(theirs,), daemon=True
                )
                process.start()
        except (OSError, EOFError) as error:
            ours.close()
            raise BackendError(
                f"no worker can be started: {error}", hint="is memory short? see the system's log"
            ) from error
        # `theirs` is closed here: were it open, the end of the child would not be seen on `ours`.
        self.pid: int = process.pid or 0
        self._process: BaseProcess = process
        self._channel = Channel(ours)
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
        if self._end:
            raise self._gone()
        self._request_id = request_id = (self._request_id + 1) & 0xFFFFFFFF
        failure = None
        try:
            self._channel.send(kind, request_id, parts, timeout_s)
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
        poll.register(self._process.sentinel, select.POLLIN)
        return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))

    def kill(self, reason: str) -> None:
        """Make sure that the process is gone. `reason` says why, if it is not what it died of."""
        if not reason and not self.wait(REAP_TIMEOUT_S):
            reason = "closed its connection and was killed"
        with _forking:
            if not self.wait(0):
                # Said before it is done: whoever waits for an answer sees the end at once and asks why.
                self._end = self._end or reason
                self._process.kill()
        if not self.wait(REAP_TIMEOUT_S):
            logger.error("worker %d cannot be killed", self.pid)
        with _forking:
            self._process.join(0)
            self._end = self._end or reason or _describe(self._process.exitcode)

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


def _failure(frame: Frame, request_id: int) -> Failure:
    if frame.kind is not Kind.FAILURE or frame.request_id != request_id:
        raise ManifestError("the answer to another question")
    return decode_message(frame.payload, Failure)


def _enter(stream: socket.socket) -> None:
    """Run in the forked process."""
    from .worker import main

    main(stream)


def _describe(exit_code: int | None) -> str:
    if exit_code is None or exit_code == _LOST_EXIT_CODE:
        return "vanished"
    if exit_code >= 0:
        return f"exited with {exit_code}"
    try:
        return f"died of {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"died of signal {-exit_code}"


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Keep multiprocessing from running this program's main module again in the child.

    It would import a console script or a test runner into every worker, and fail where the main module is no file.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
