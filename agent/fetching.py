"""Fetching, as the agent sees it: a child for each model that is fetched, which can be cancelled.

Decides what the child is told, how long it may take, and which error of ours its words are. What it does is `fetch`'s
business. It is a process of its own, so that cryptography and hostile bytes leave with it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final

import msgspec

from edgeml import errors
from edgeml.clock import Clock
from edgeml.errors import (
    BackendError,
    BudgetError,
    EdgemlError,
    PostponedError,
    StorageError,
    TransferError,
)
from edgeml.ids import ModelName, model_of
from edgeml.meter import TELL_BYTES
from edgeml.trustfacts import SignedTarget
from edgeml.twin import Desired, FullDownload

from .config import AgentConfig
from .executor import Delivery, Setback
from .fetch import Answer, Job
from .ration import Purpose
from .route import Route, way_to_fleet
from .timetable import Timetable
from .traffic import Traffic

LOOKING: Final = ModelName("")
"""Stands for no model: the child that only looks at signed metadata."""
FETCH_TIMEOUT_S: Final = 3600.0
LINE_BYTES_MAX: Final = 1 << 20
TELL_MIN_BYTES: Final = 4 << 10
"""A child tells after TELL_BYTES, and after less where its allowance is small."""
OTHERS_WAIT_S: Final = 60.0
"""For another fetch to have done with what is left of the day."""


class Fetching:
    """Children that fetch. Fetches of different models may run in several threads."""

    def __init__(
        self, config: AgentConfig, store: Path, clock: Clock, timetable: Timetable, traffic: Traffic
    ) -> None:
        self._config = config
        self._timetable = timetable
        self._traffic = traffic
        self._store = store
        self._clock = clock
        self._children: dict[ModelName, subprocess.Popen[bytes]] = {}
        self._allotted: dict[ModelName, int] = {}
        """What each child may still take today."""
        self._allotting = threading.Lock()

    def fetch(self, desired: Desired, source: str) -> Delivery | Setback:
        """Let a child check the signed metadata and fetch the bundle.

        Args:
            desired: what is wanted.
            source: a directory with a repository; empty for the fleet's server.

        Raises:
            PostponedError: It is not the time for it, or today's budget of the network is used up.
            BackendError: The child says nothing sensible.
            ConfigError: There is no server, or no login.
        """
        answer = self._ask(model_of(desired.release), desired.target, source, desired.policy.full_download)
        if answer.error:
            return Setback(_error(answer), answer.received_bytes, answer.length_bytes, answer.retry_after_s)
        self._timetable.clock_trusted = answer.clock_trusted
        if answer.digest is None or answer.facts is None:
            raise BackendError("the fetching child gave no answer")
        target = SignedTarget(answer.path, answer.digest, answer.length_bytes, answer.facts)
        return Delivery(target, answer.received_bytes)

    def look(self) -> None:
        """Let a child check the newest signed metadata, and fetch nothing else.

        Raises:
            PostponedError: It is not the time for it, or today's budget of the network is used up.
            ExpiredError: They have expired.
            EdgemlError: They cannot be fetched, or are not trusted.
        """
        answer = self._ask(LOOKING, "", "", FullDownload.NEVER)
        if answer.error:
            raise _error(answer)
        self._timetable.clock_trusted = answer.clock_trusted

    def _ask(self, model: ModelName, target: str, source: str, full_download: FullDownload) -> Answer:
        repository = source or way_to_fleet(self._config)
        job = self._job(target, repository, full_download)
        if not source:
            self._timetable.check_download()
            job = self._within_budget(job, self._allot(model))
        try:
            return self._run_child(model, job)
        finally:
            self._allotted.pop(model, None)

    def _job(self, target: str, repository: str | Route, full_download: FullDownload) -> Job:
        blobs = self._config.blobs
        rate = self._config.budget.network_bytes_per_s
        return Job(
            target=target,
            trust_directory=str(Path(self._config.storage) / "trust"),
            store_directory=str(self._store),
            repository=repository,
            now_ms=self._clock.now_ms(),
            storage_bytes=self._config.budget.storage_bytes,
            full_download=full_download,
            bytes_per_s=None if rate is None else rate / self._config.update.parallel_downloads,
            cache=blobs.cache_url if blobs and isinstance(repository, Route) else "",
            parent_id=os.getpid(),
        )

    def _within_budget(self, job: Job, allowance_bytes: int | None) -> Job:
        if allowance_bytes is None:
            return job
        return msgspec.structs.replace(
            job,
            allowance_bytes=allowance_bytes,
            allowance_wait_s=self._traffic.wait_s,
            tell_bytes=min(TELL_BYTES, max(allowance_bytes // 8, TELL_MIN_BYTES)),
        )

    def cancel(self, model: ModelName) -> None:
        """End a fetch of this model that is under way; it can be resumed."""
        child = self._children.get(model)
        if child is not None:
            child.terminate()

    def _allot(self, model: ModelName) -> int | None:
        """Say what a child may take of today's budget, and set it aside; None without a budget.

        Raises:
            PostponedError: Nothing, or others may take all that is left.
        """
        room = self._traffic.room_bytes(Purpose.DOWNLOADS)
        if room is None:
            return None
        if not room:
            raise PostponedError(
                f"the network's budget of today is used up after {self._traffic.spent_bytes} bytes",
                wait_s=self._traffic.wait_s,
                hint="budget.network_bytes_per_day; it goes on tomorrow",
            )
        with self._allotting:
            left = room - sum(self._allotted.values())
            self._allotted[model] = max(left, 0)
        if left <= 0:
            del self._allotted[model]
            raise PostponedError(
                "another model is fetched with what is left of the network's budget of today",
                wait_s=min(OTHERS_WAIT_S, self._traffic.wait_s),
                hint="budget.network_bytes_per_day",
            )
        return left

    def _timeout_s(self, job: Job) -> float:
        """A slow rate takes the time that it takes, and a bundle is at most as large as the store."""
        if job.bytes_per_s is None:
            return FETCH_TIMEOUT_S
        return FETCH_TIMEOUT_S + job.storage_bytes / job.bytes_per_s

    def _run_child(self, model: ModelName, job: Job) -> Answer:
        """Run the fetching child and return its last answer."""
        name = f"{__package__}.fetch"
        command = [sys.executable, "-P", "-m", name]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
        ) as child:
            self._children[model] = child
            guard = threading.Timer(self._timeout_s(job), child.kill)
            guard.start()
            try:
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(msgspec.json.encode(job))
                child.stdin.close()
                last = Answer()
                counted = 0
                while line := child.stdout.readline(LINE_BYTES_MAX):
                    last = msgspec.json.decode(line, type=Answer)
                    if not last.finished:
                        self._traffic.add(last.network_bytes - counted)
                        counted = last.network_bytes
                        if job.allowance_bytes is not None:
                            self._allotted[model] = max(job.allowance_bytes - counted, 0)
            except (msgspec.MsgspecError, BrokenPipeError) as error:
                child.kill()
                raise BackendError(f"the fetching child said nothing sensible: {error}") from error
            except StorageError:
                # What cannot be counted may not be used.
                child.kill()
                raise
            finally:
                guard.cancel()
                del self._children[model]
                self._traffic.settle()
        if not last.finished:
            # What it took since it told.
            self._traffic.add(min(job.tell_bytes, self._allotted.get(model, 0)))
            # Killed, or out of memory: what it verified is kept, so trying again is right.
            return msgspec.structs.replace(
                last, error=TransferError.__name__,
                message=f"the fetching child ended with {child.returncode}",
            )  # fmt: skip
        return last


def _error(answer: Answer) -> EdgemlError:
    """Make the child's error this process' error."""
    kind = getattr(errors, answer.error, None)
    if kind is BudgetError:
        return BudgetError(
            answer.message, budget=answer.budget, observed=answer.observed, unit=answer.unit, hint=answer.hint
        )
    if kind is PostponedError:
        return PostponedError(answer.message, wait_s=answer.wait_s, hint=answer.hint)
    if isinstance(kind, type) and issubclass(kind, EdgemlError):
        return kind(answer.message, hint=answer.hint)
    return BackendError(answer.message, hint=answer.hint)


def child_environment() -> dict[str, str]:
    """Only what Python, proxies and certificates need."""
    kept = (
        "PATH",
        "PYTHONPATH",
        "LANG",
        "LC_ALL",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
    )
    return {name: os.environ[name] for name in kept if name in os.environ}
