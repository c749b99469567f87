"""The forkserver: a process that has imported what workers need, and forks them.

Decides how a worker comes to be in milliseconds without any thread, lock or model in the process that is forked; what
the two ends say to each other (one request, one reply, each a message of a sequenced-packet socket); and that nothing
of it outlives the supervisor. Python's own forkserver does much of this, at the price of a second helper process that
does nothing here (6 MB), 2 MB more in the supervisor, and workers that a signal to the whole group ends first.

A dead worker stays a zombie until the supervisor asks for its end, so its process id names nothing else meanwhile and
may be signalled. What a worker does is `worker`'s business.
"""

from __future__ import annotations

import importlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NoReturn

from edgeml.child import kill_group
from edgeml.errors import BackendError
from edgeml.lifeline import die_with_parent

REPLY_TIMEOUT_S: Final = 60.0
"""It imports before it answers for the first time: seconds on a small device, from a slow card."""
RUNNING: Final = 1 << 20
"""In place of an exit code: the process has not ended."""
LOST: Final = RUNNING + 1
"""In place of an exit code: nobody knows any more."""
_FORK: Final = b"F"
_REAP: Final = b"R"
_REQUEST: Final = struct.Struct("<cq")
_REPLY: Final = struct.Struct("<qi")
_DESCRIPTORS_MAX: Final = 3
_ONE_THREAD: Final = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


class ForkServer:
    """The supervisor's end. Thread-safe. The process starts when it is first needed, and again if it dies."""

    def __init__(self, preload: Sequence[str]) -> None:
        self._preload = tuple(preload)
        self._turn = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def start(self) -> None:
        """Start the process, which imports its modules meanwhile; returns at once.

        Raises:
            BackendError: The machine has no process or memory left for it.
        """
        with self._turn:
            self._ensure()

    def fork(self, stream: socket.socket, lifeline: int, memory: int | None = None) -> int:
        """Fork a worker that talks over `stream` and keeps `lifeline` open as long as it lives; return its process id.

        `memory` is a descriptor of what it shares with the supervisor, if there is such memory.

        Raises:
            BackendError: The machine has no process or memory left for it, or the forkserver hangs.
        """
        descriptors = [stream.fileno(), lifeline] + ([] if memory is None else [memory])
        with self._turn:
            for _ in range(2):
                control = self._ensure()
                try:
                    socket.send_fds(control, [_REQUEST.pack(_FORK, 0)], descriptors)
                    pid, status = _REPLY.unpack(self._reply(control))
                except (OSError, struct.error):
                    # It died since it was last asked; once more with a new one.
                    self._forget()
                    continue
                if status:
                    raise BackendError(
                        f"no worker can be started: {os.strerror(status)}",
                        hint="is memory short? see the system's log",
                    )
                return int(pid)
        raise BackendError("no worker can be started: the forkserver dies", hint="see the agent's log")

    def reap(self, pid: int) -> int:
        """Say how a worker ended, once: its exit code, minus the signal that it died of, RUNNING, or LOST."""
        with self._turn:
            if self._control is None:
                return LOST
            try:
                self._control.send(_REQUEST.pack(_REAP, pid))
                _, status = _REPLY.unpack(self._reply(self._control))
            except (OSError, struct.error):
                self._forget()
                return LOST
            return int(status)

    def close(self) -> None:
        """End the process, and with it every worker that still runs."""
        with self._turn:
            self._forget()

    def _ensure(self) -> socket.socket:
        if self._control is not None and self._process is not None and self._process.poll() is None:
            return self._control
        self._forget()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # Threads that a library starts on import would not survive the fork. What the runtime may use is set per model.
        environment = {**dict.fromkeys(_ONE_THREAD, "1"), **os.environ}
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", __name__, str(theirs.fileno()), *self._preload],
                    env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0,
                )  # fmt: skip
        except OSError as error:
            ours.close()
            raise BackendError(
                f"no worker can be started: {error}", hint="is memory short? see the system's log"
            ) from error
        ours.settimeout(REPLY_TIMEOUT_S)
        self._control = ours
        return ours

    def _reply(self, control: socket.socket) -> bytes:
        return control.recv(_REPLY.size)

    def _forget(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            kill_group(self._process)
        self._control = self._process = None


def serve(control: socket.socket, preload: Sequence[str]) -> NoReturn:
    """Fork workers until the supervisor closes its end, or is gone."""
    # Ctrl-C and a shell's signals go to whole groups; the supervisor decides in which order things end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in preload:
        # What is not installed is missed by the worker that needs it, and named there.
        with suppress(ImportError):
            importlib.import_module(name)
    children: set[int] = set()
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, _REQUEST.size, _DESCRIPTORS_MAX)
        if not request:
            os._exit(0)
        kind, pid = _REQUEST.unpack(request)
        if kind == _FORK:
            pid, status = _fork(control, descriptors)
            children |= {pid} if pid else set()
        else:
            status = _reaped(pid) if pid in children else LOST
            if status != RUNNING:
                children.discard(pid)
        control.send(_REPLY.pack(pid, status))


def _fork(control: socket.socket, descriptors: list[int]) -> tuple[int, int]:
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        return 0, error.errno or 1
    else:
        if not pid:
            control.close()
            _become_worker(descriptors, parent)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return pid, 0


def _become_worker(descriptors: Sequence[int], parent: int) -> NoReturn:
    try:
        # The forkserver dies with the supervisor; so must a worker that hangs in native code and cannot see its socket
        # close. First of all, and by the parent's id: it may have died since the fork.
        die_with_parent(parent, signal.SIGKILL)
        from .worker import main

        stream, lifeline, *memory = descriptors
        main(socket.socket(fileno=stream), lifeline, memory[0] if memory else None)
    except BaseException:  # whatever it is, this process is the worker's and ends here
        sys.excepthook(*sys.exc_info())
    finally:
        # Not as an interpreter ends: what was imported belongs to the process that was forked.
        os._exit(1)


def _reaped(pid: int) -> int:
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else RUNNING


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
