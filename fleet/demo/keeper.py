"""Keeps the demo's processes alive, as an init system would on real machines.

Decides that a process that dies is started again after a short pause, that its output goes to a file, and that nothing
outlives the demo. What the processes do is their own business.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from edgeml.lifeline import die_with_parent

logger = logging.getLogger(__name__)

RESTART_PAUSE_S: Final = 0.5
STOP_TIMEOUT_S: Final = 8.0


@dataclass(slots=True)
class Kept:
    """One process that is kept alive."""

    name: str
    arguments: list[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0


@dataclass
class Keeper:
    """Starts processes and starts them again when they die. Use as a context manager."""

    logs: Path
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Prepare; nothing is started yet."""
        self._kept: dict[str, Kept] = {}
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._watch, name="keeper", daemon=True)

    def __enter__(self) -> Self:
        """Begin to watch."""
        self.logs.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything."""
        self._stopping.set()
        self._thread.join()
        with self._lock:
            running = [kept.process for kept in self._kept.values() if kept.process is not None]
        for process in running:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in running:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def keep(self, name: str, arguments: list[str]) -> None:
        """Start a process (`edgeml` arguments) and keep it alive."""
        kept = Kept(name, [sys.executable, "-P", "-m", "edgeml", *arguments], self.logs / f"{name}.log")
        with self._lock:
            self._kept[name] = kept
            self._start(kept)

    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        with self._lock:
            return {kept.name: kept.process.pid for kept in self._kept.values() if kept.process is not None}

    def restarts(self) -> dict[str, int]:
        """How often each process had to be started again."""
        with self._lock:
            return {kept.name: kept.starts - 1 for kept in self._kept.values()}

    def _watch(self) -> None:
        while not self._stopping.wait(0.1):
            with self._lock:
                dead = [
                    kept
                    for kept in self._kept.values()
                    if kept.process is not None and kept.process.poll() is not None
                ]
            for kept in dead:
                assert kept.process is not None
                logger.info("%s ended with %s; starting it again", kept.name, kept.process.returncode)
                if self._stopping.wait(RESTART_PAUSE_S):
                    return
                with self._lock:
                    self._start(kept)

    def _start(self, kept: Kept) -> None:
        kept.starts += 1
        with kept.log.open("ab") as log:
            kept.process = subprocess.Popen(
                kept.arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | self.environment,
                start_new_session=True, preexec_fn=partial(die_with_parent, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 - safe after fork
            )  # fmt: skip
