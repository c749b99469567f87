"""The fetching child: checks signed metadata and fetches one bundle, then ends.

Runs as its own process, so that python-tuf and its cryptography (11 MB) leave the device's memory with it, and a
parser that dies of hostile bytes takes nothing else along. Reads one job from standard input, writes progress and one
answer to standard output, all JSON lines. Decides nothing: `edgeml.trust`, `edgeml.rebuild` and `edgeml.download` do.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edgeml.errors import BudgetError, EdgemlError, PostponedError
from edgeml.ids import Digest
from edgeml.trustfacts import SignedFacts
from edgeml.twin import FullDownload

if TYPE_CHECKING:
    from edgeml.source import Source

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
    storage_bytes: int
    """For all that is in the store, with what is fetched."""
    full_download: FullDownload = FullDownload.ALWAYS
    username: str = ""
    password: str = ""
    allowance_bytes: int | None = None
    """What may still be taken of the network today."""
    allowance_wait_s: float = 0.0
    """Until there is more."""
    bytes_per_s: float | None = None


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was taken of the network so far, or the last line: either a delivery or an error."""

    network_bytes: int = 0
    """All of it, with what was not the bundle's."""
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
    wait_s: float = 0.0
    """Of a PostponedError."""
    budget: float = 0.0
    observed: float = 0.0
    unit: str = ""
    """Of a BudgetError."""


def deliver(job: Job, say: msgspec.json.Encoder | None = None) -> Answer:
    """Do the job in this process.

    Raises:
        EdgemlError: As `edgeml.trust`, `edgeml.metering` and `edgeml.rebuild`; what was fetched until then is kept.
        BudgetError: The store has no room.
    """
    from edgeml.metering import MeteredSource, Terms
    from edgeml.source import DirectorySource, HttpSource

    def tell(network_bytes: int) -> None:
        if say is not None:
            _write(Answer(network_bytes=network_bytes), say)

    remote = job.repository.startswith(("http://", "https://"))
    if not remote:
        return _deliver(job, DirectorySource(Path(job.repository)))
    terms = Terms(job.allowance_bytes, job.bytes_per_s, job.allowance_wait_s)
    source = MeteredSource(HttpSource(job.repository, job.username, job.password), terms, tell)
    try:
        return _deliver(job, source)
    finally:
        source.settle()


def _deliver(job: Job, source: Source) -> Answer:
    from edgeml.lock import waiting_lock
    from edgeml.rebuild import obtain
    from edgeml.trust import TrustStore

    from .storeroom import check_room

    directory = Path(job.trust_directory)
    # One at a time: of two children that refresh side by side, the slower one would put back older metadata.
    with waiting_lock(directory / LOCK, TRUST_WAIT_S):
        trust = TrustStore(directory, source, now_ms=job.now_ms)
        trust.refresh()
        target = trust.target(job.target)
    store = Path(job.store_directory)
    check_room(store, target, job.storage_bytes)
    fetched = obtain(source, target, store, job.full_download)
    return Answer(
        finished=True, path=target.path, digest=target.digest, length_bytes=target.length_bytes, facts=target.facts,
        received_bytes=fetched.received_bytes, clock_trusted=trust.time.clock_trusted,
    )  # fmt: skip


def _write(answer: Answer, encoder: msgspec.json.Encoder) -> None:
    sys.stdout.buffer.write(encoder.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


def _failed(error: EdgemlError) -> Answer:
    answer = Answer(finished=True, error=type(error).__name__, message=error.message, hint=error.hint)
    if isinstance(error, PostponedError):
        return msgspec.structs.replace(answer, wait_s=error.wait_s)
    if isinstance(error, BudgetError):
        return msgspec.structs.replace(answer, budget=error.budget, observed=error.observed, unit=error.unit)
    return answer


def main() -> None:
    """Do the job that standard input holds."""
    encoder = msgspec.json.Encoder()
    job = msgspec.json.decode(sys.stdin.buffer.read(JOB_BYTES_MAX), type=Job)
    try:
        answer = deliver(job, encoder)
    except EdgemlError as error:
        answer = _failed(error)
    _write(answer, encoder)


if __name__ == "__main__":
    main()
