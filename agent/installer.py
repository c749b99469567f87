"""The installer of a real device: files, a fetching child, workers.

Decides how each action is really done; what follows from success or failure is `executor`'s and `machine`'s business.
Every method may be called twice for the same thing.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from edgeml import atomic, errors
from edgeml.clock import Clock
from edgeml.errors import (
    BackendError,
    BudgetError,
    ConfigError,
    DigestMismatchError,
    EdgemlError,
    StateError,
    TransferError,
)
from edgeml.ids import Digest, digest_of_file
from edgeml.manifest import GOLDEN
from edgeml.trustfacts import SignedTarget
from edgeml.twin import Desired, Slot, Slots

from .config import AgentConfig, read_secret
from .executor import Delivery
from .fetch import Answer, Job
from .health import TrialLimits, judge
from .serving import Serving
from .slots import SlotTable, demote, promote
from .supervisor import Supervisor, Worker, WorkerLimits

logger = logging.getLogger(__name__)

FETCH_TIMEOUT_S: Final = 3600.0
LINE_BYTES_MAX: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Tools:
    """What the installer works with."""

    supervisor: Supervisor
    serving: Serving
    table: SlotTable
    clock: Clock
    on_retired: Callable[[Worker], None]
    """Called with a worker that no longer serves, before it is stopped."""
    on_loaded: Callable[[Worker], None]
    """Called with a worker before it serves."""
    on_progress: Callable[[int, int], None] = lambda _done, _all: None


class DeviceInstaller:
    """Installs variants on this device. Called from one thread at a time."""

    def __init__(self, config: AgentConfig, tools: Tools) -> None:
        self._config = config
        self._tools = tools
        self._table = tools.table
        self._limits = WorkerLimits(threads=config.budget.threads, line=config.serve.line)
        self._child: subprocess.Popen[bytes] | None = None
        self.clock_trusted = True

    @property
    def slots(self) -> Slots:
        """What is installed."""
        return self._table.slots

    def fetch(self, desired: Desired, source: str) -> Delivery:
        """Let a child check the signed metadata and fetch the bundle.

        Raises:
            EdgemlError: What the child says went wrong.
            BackendError: The child died.
        """
        blobs, broker = self._config.blobs, self._config.broker
        if not source and (blobs is None or broker is None):
            raise ConfigError(
                "this device has no server to fetch from", hint="set [blobs] and [broker], or flash it"
            )
        job = Job(
            target=desired.target,
            trust_directory=str(Path(self._config.storage) / "trust"),
            store_directory=str(self._table.store),
            repository=source or (blobs.url if blobs else ""),
            now_ms=self._tools.clock.now_ms(),
            length_max_bytes=self._config.budget.storage_bytes,
            full_download=desired.policy.full_download,
            username="" if source else self._config.device,
            password="" if source or broker is None else read_secret(Path(broker.password_file)),
        )
        answer = self._run_child(job)
        self.clock_trusted = answer.clock_trusted
        if answer.digest is None or answer.facts is None:
            raise BackendError("the fetching child gave no answer")
        target = SignedTarget(answer.path, answer.digest, answer.length_bytes, answer.facts)
        return Delivery(target, answer.received_bytes)

    def cancel(self) -> None:
        """End a fetch that is under way; it can be resumed."""
        child = self._child
        if child is not None:
            child.terminate()

    def verify(self, digest: Digest) -> None:
        """Check the bundle on disk against its digest; the worker checks it again before it loads it.

        Raises:
            DigestMismatchError: It is another one, or gone.
            StorageError: The disk failed.
        """
        path = self._table.path(digest)
        try:
            observed = digest_of_file(path)
        except FileNotFoundError as error:
            raise DigestMismatchError(f"{path.name} is not there") from error
        except OSError as error:
            raise atomic.storage_error(error, path) from error
        if observed != digest:
            raise DigestMismatchError(f"{path.name} has digest {observed[:12]}…")

    def activate(self, slot: Slot) -> None:
        """Load the variant in a worker, prove it, and let it serve on trial.

        Raises:
            ArtifactError: It cannot be loaded, or answers its golden vectors wrongly.
            BudgetError: It takes more memory or time than this device grants.
        """
        worker = self._load(slot)
        try:
            self._prove(worker)
        except EdgemlError:
            worker.stop()
            raise
        self._swap(worker)

    def observe(self, slot: Slot) -> None:
        """Judge the trial: still the one that serves, and no crash since.

        Raises:
            BackendError: It crashed on trial.
            StateError: Another one serves.
        """
        active = self._tools.serving.active
        if active is None or active.digest != slot.digest:
            raise StateError(f"{slot.release} is not the one on trial")
        if self._tools.serving.crashes:
            raise BackendError(
                f"the worker of {slot.release} crashed {self._tools.serving.crashes} times on trial"
            )

    def commit(self, slot: Slot) -> None:
        """Make the variant the current slot, then remove what no slot names."""
        self._table.write(promote(self._table.slots, slot))
        removed = self._table.clean()
        if removed:
            logger.info("removed %d files that no slot names", removed)

    def restore(self, condemned: Digest | None) -> Slot | None:
        """Serve the best slot that is not condemned.

        Raises:
            StateError: Slots are installed and none can be served.
        """
        slots = self._table.slots
        if slots.current is None:
            self._swap(None)
            return None
        reasons = []
        while slots.current is not None:
            if slots.current.digest != condemned:
                try:
                    self._serve(slots.current)
                except EdgemlError as error:
                    logger.warning("slot %s cannot be served: %s", slots.current.release, error.message)
                    reasons.append(f"{slots.current.release}: {error.message}")
                else:
                    self._table.write(slots)
                    self._table.clean()
                    return slots.current
            slots = demote(slots)
        self._swap(None)
        raise StateError(
            f"no slot can be served ({'; '.join(reasons) or 'all are condemned'})",
            hint="flash or assign a release",
        )

    def _serve(self, slot: Slot) -> None:
        active = self._tools.serving.active
        if active is not None and active.digest == slot.digest and active.alive:
            return
        self._swap(self._load(slot))

    def _load(self, slot: Slot) -> Worker:
        worker = self._tools.supervisor.load(self._table.path(slot.digest), slot.digest, self._limits)
        logger.info("loaded %s in %.0f ms", slot.release, worker.load_ms)
        self._tools.on_loaded(worker)
        return worker

    def _prove(self, worker: Worker) -> None:
        if worker.manifest.file(GOLDEN) is None:
            logger.info("%s has no golden vectors; loading it is all that is proven", worker.manifest.release)
            return
        run = worker.golden()
        budget = self._config.budget
        verdict = judge(
            run, TrialLimits(memory_budget_bytes=budget.memory_bytes, latency_budget_ms=budget.latency_ms), 0
        )
        logger.info("%s on trial: %s", worker.manifest.release, verdict.reason)
        if verdict.healthy:
            return
        if run.passed:
            memory = budget.memory_bytes is not None and run.peak_memory_bytes > budget.memory_bytes
            raise BudgetError(
                verdict.reason,
                budget=float((budget.memory_bytes if memory else budget.latency_ms) or 0),
                observed=float(run.peak_memory_bytes if memory else run.latency_p50_ms),
                unit="bytes" if memory else "ms",
            )
        raise BackendError(verdict.reason)

    def _swap(self, worker: Worker | None) -> None:
        old = self._tools.serving.swap(worker)
        if old is not None:
            self._tools.on_retired(old)
            old.stop()

    def _run_child(self, job: Job) -> Answer:
        """Run the fetching child and return its last answer."""
        name = f"{__package__}.fetch"
        command = [sys.executable, "-P", "-m", name]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_environment()
        ) as child:
            self._child = child
            guard = threading.Timer(FETCH_TIMEOUT_S, child.kill)
            guard.start()
            try:
                assert child.stdin is not None
                assert child.stdout is not None
                child.stdin.write(msgspec.json.encode(job))
                child.stdin.close()
                last = Answer()
                while line := child.stdout.readline(LINE_BYTES_MAX):
                    last = msgspec.json.decode(line, type=Answer)
                    if not last.finished:
                        self._tools.on_progress(last.done_bytes, last.all_bytes)
            except (msgspec.MsgspecError, BrokenPipeError) as error:
                child.kill()
                raise BackendError(f"the fetching child said nothing sensible: {error}") from error
            finally:
                guard.cancel()
                self._child = None
        if last.error:
            raise _error(last)
        if not last.finished:
            # Killed, or out of memory: what it verified is kept, so trying again is right.
            raise TransferError(f"the fetching child ended with {child.returncode}")
        return last


def _error(answer: Answer) -> EdgemlError:
    """Make the child's error this process' error."""
    kind = getattr(errors, answer.error, None)
    if kind is BudgetError:
        return BudgetError(answer.message, budget=0, observed=0, unit="bytes", hint=answer.hint)
    if isinstance(kind, type) and issubclass(kind, EdgemlError):
        return kind(answer.message, hint=answer.hint)
    return BackendError(answer.message, hint=answer.hint)


def _environment() -> dict[str, str]:
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
