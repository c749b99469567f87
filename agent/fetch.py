"""The fetching child: checks signed metadata and fetches one bundle, then ends.

Runs as its own process, so that python-tuf and its cryptography (11 MB) leave the device's memory with it, and a
parser that dies of hostile bytes takes nothing else along. Reads one job from standard input, writes progress and one
answer to standard output, all JSON lines. Decides nothing: `edgeml.trust`, `edgeml.rebuild` and `edgeml.download` do.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edgeml.errors import EdgemlError, TransferError
from edgeml.ids import Digest
from edgeml.lifeline import die_with_parent
from edgeml.trustfacts import SignedFacts
from edgeml.twin import FullDownload

if TYPE_CHECKING:
    # The agent imports this file for its types, and has no HTTP client.
    from edgeml.source import CountedSource

JOB_BYTES_MAX: Final = 64 << 10
LOCK: Final = "trust.lock"
TRUST_WAIT_S: Final = 300.0
"""For another child to have done with the metadata; it has a time limit of its own."""


class Job(msgspec.Struct, frozen=True):
    """What to fetch, from where, to where."""

    target: str
    trust_directory: str
    store_directory: str
    repository: str
    """`http(s)://…`, or a directory."""
    now_ms: int
    length_max_bytes: int
    full_download: FullDownload = FullDownload.ALWAYS
    username: str = ""
    password: str = ""
    parent_id: int = 0
    """Process that the child ends with; 0 if it is nobody's child."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A progress line, or the last line: either a delivery or an error. `received_bytes` is true of each."""

    done_bytes: int = 0
    all_bytes: int = 0
    finished: bool = False
    path: str = ""
    digest: Digest | None = None
    length_bytes: int = 0
    facts: SignedFacts | None = None
    received_bytes: int = 0
    clock_trusted: bool = True
    error: str = ""
    message: str = ""
    hint: str = ""
    retry_after_s: float = 0.0


def deliver(job: Job) -> Answer:
    """Do the job in this process.

    Raises:
        EdgemlError: As `edgeml.trust` and `edgeml.rebuild`.
    """
    return _deliver(job, _Work(None))


class _Work:
    """How far a job has come, and whom to tell."""

    def __init__(self, encoder: msgspec.json.Encoder | None) -> None:
        self._encoder = encoder
        self._told_s = 0.0
        self.source: CountedSource | None = None
        self.length_bytes = 0

    @property
    def received_bytes(self) -> int:
        """What came over the network."""
        return 0 if self.source is None else self.source.received_bytes

    def progress(self, done: int, total: int) -> None:
        """Say so, once a second."""
        if self._encoder is None or (done != total and time.monotonic() - self._told_s < 1.0):
            return
        self._told_s = time.monotonic()
        _write(
            Answer(
                done_bytes=done, all_bytes=total,
                length_bytes=self.length_bytes, received_bytes=self.received_bytes,
            ),
            self._encoder,
        )  # fmt: skip


def _deliver(job: Job, work: _Work) -> Answer:
    from edgeml.errors import BudgetError
    from edgeml.lock import waiting_lock
    from edgeml.rebuild import obtain
    from edgeml.source import CountedSource, DirectorySource, HttpSource
    from edgeml.trust import TrustStore

    remote = job.repository.startswith(("http://", "https://"))
    work.source = source = CountedSource(
        HttpSource(job.repository, job.username, job.password)
        if remote
        else DirectorySource(Path(job.repository))
    )
    directory = Path(job.trust_directory)
    # One at a time: of two children that refresh side by side, the slower one would put back older metadata.
    with waiting_lock(directory / LOCK, TRUST_WAIT_S):
        trust = TrustStore(directory, source, now_ms=job.now_ms)
        trust.refresh()
        target = trust.target(job.target)
    work.length_bytes = target.length_bytes
    if target.length_bytes > job.length_max_bytes:
        raise BudgetError(
            f"{job.target} has {target.length_bytes} bytes, this device may store {job.length_max_bytes}",
            budget=job.length_max_bytes, observed=target.length_bytes, unit="bytes",
        )  # fmt: skip
    fetched = obtain(source, target, Path(job.store_directory), job.full_download, work.progress)
    return Answer(
        finished=True, path=target.path, digest=target.digest, length_bytes=target.length_bytes, facts=target.facts,
        received_bytes=fetched.received_bytes, clock_trusted=trust.time.clock_trusted,
    )  # fmt: skip


def _write(answer: Answer, encoder: msgspec.json.Encoder) -> None:
    sys.stdout.buffer.write(encoder.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Do the job that standard input holds."""
    encoder = msgspec.json.Encoder()
    job = msgspec.json.decode(sys.stdin.buffer.read(JOB_BYTES_MAX), type=Job)
    if job.parent_id:
        # An agent that is killed starts again; two children would fetch the same over one line, into one file.
        die_with_parent(job.parent_id, signal.SIGKILL)
    work = _Work(encoder)
    try:
        answer = _deliver(job, work)
    except EdgemlError as error:
        answer = Answer(
            finished=True, error=type(error).__name__, message=error.message, hint=error.hint,
            length_bytes=work.length_bytes, received_bytes=work.received_bytes,
            retry_after_s=error.retry_after_s if isinstance(error, TransferError) else 0.0,
        )  # fmt: skip
    _write(answer, encoder)


if __name__ == "__main__":
    main()
