"""The fetching child: checks signed metadata and fetches one bundle, then ends.

Runs as its own process, so that python-tuf and its cryptography (11 MB) leave the device's memory with it, and a
parser that dies of hostile bytes takes nothing else along. Reads one job from standard input, writes progress and one
answer to standard output, all JSON lines. Decides nothing: `edgeml.trust`, `edgeml.rebuild` and `edgeml.download` do.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from edgeml.errors import EdgemlError
from edgeml.ids import Digest
from edgeml.trustfacts import SignedFacts
from edgeml.twin import FullDownload

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


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A progress line, or the last line: either a delivery or an error."""

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


def deliver(job: Job, say: msgspec.json.Encoder | None = None) -> Answer:
    """Do the job in this process.

    Raises:
        EdgemlError: As `edgeml.trust` and `edgeml.rebuild`.
    """
    from edgeml.errors import BudgetError
    from edgeml.lock import waiting_lock
    from edgeml.rebuild import obtain
    from edgeml.source import DirectorySource, HttpSource, Source
    from edgeml.trust import TrustStore

    remote = job.repository.startswith(("http://", "https://"))
    source: Source = (
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
    if target.length_bytes > job.length_max_bytes:
        raise BudgetError(
            f"{job.target} has {target.length_bytes} bytes, this device may store {job.length_max_bytes}",
            budget=job.length_max_bytes, observed=target.length_bytes, unit="bytes",
        )  # fmt: skip
    last = [0.0]

    def progress(done: int, total: int) -> None:
        if say is not None and (done == total or time.monotonic() - last[0] > 1.0):
            last[0] = time.monotonic()
            _write(Answer(done_bytes=done, all_bytes=total), say)

    fetched = obtain(source, target, Path(job.store_directory), job.full_download, progress)
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
    try:
        answer = deliver(job, encoder)
    except EdgemlError as error:
        answer = Answer(finished=True, error=type(error).__name__, message=error.message, hint=error.hint)
    _write(answer, encoder)


if __name__ == "__main__":
    main()
