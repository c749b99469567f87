"""The fetching child: checks signed metadata and fetches one bundle, then ends.

Runs as its own process, so that python-tuf and its cryptography (11 MB) leave the device's memory with it, and a
parser that dies of hostile bytes takes nothing else along. Reads one job from standard input, writes progress and one
answer to standard output, all JSON lines. Decides nothing: `edgeml.trust`, `edgeml.rebuild` and `edgeml.download` do.
"""

from __future__ import annotations

import logging
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from edgeml.errors import BudgetError, DigestMismatchError, EdgemlError, PostponedError, TransferError
from edgeml.ids import Digest
from edgeml.lifeline import die_with_parent
from edgeml.meter import TELL_BYTES
from edgeml.trustfacts import SignedFacts
from edgeml.twin import FullDownload

from .route import Route

if TYPE_CHECKING:
    # The agent imports this file for its types, and has no HTTP client.
    from edgeml.source import CountedSource

logger = logging.getLogger(__name__)

JOB_BYTES_MAX: Final = 64 << 10
LOCK: Final = "trust.lock"
UNREAD_BYTES: Final = 32 << 10
"""Of a download with an allowance."""
TRUST_WAIT_S: Final = 300.0
"""For another child to have done with the metadata; it has a time limit of its own."""


class Job(msgspec.Struct, frozen=True):
    """What to fetch, from where, to where."""

    target: str
    """Empty: only look whether signed metadata are fresh."""
    trust_directory: str
    store_directory: str
    repository: str | Route
    """A directory, or the way to the fleet."""
    now_ms: int
    storage_bytes: int
    """For all that is in the store, with what is fetched."""
    full_download: FullDownload = FullDownload.ALWAYS
    allowance_bytes: int | None = None
    """What may still be taken of the network today."""
    allowance_wait_s: float = 0.0
    """Until there is more."""
    tell_bytes: int = TELL_BYTES
    """How much may be taken of it without telling."""
    bytes_per_s: float | None = None
    cache: str = ""
    """`http(s)://…` of a cache nearby that may have blobs; empty if there is none."""
    parent_id: int = 0
    """Process that the child ends with; 0 if it is nobody's child."""


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was taken of the network so far, or the last line: either a delivery or an error.

    `length_bytes`, of the bundle, and `received_bytes`, of blobs, are true of each line.
    """

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
    retry_after_s: float = 0.0
    """Of a TransferError: what the server asked for."""
    budget: float = 0.0
    observed: float = 0.0
    unit: str = ""
    """Of a BudgetError."""


def deliver(job: Job) -> Answer:
    """Do the job in this process.

    Raises:
        EdgemlError: As `edgeml.trust`, `edgeml.meter` and `edgeml.rebuild`; what was fetched until then is kept.
        BudgetError: The store has no room.
    """
    return _deliver(job, _Work(None))


class _Work:
    """How far a job has come, and whom to tell."""

    def __init__(self, encoder: msgspec.json.Encoder | None) -> None:
        self._encoder = encoder
        self.source: CountedSource | None = None
        self.length_bytes = 0

    @property
    def received_bytes(self) -> int:
        """What came over the network of blobs."""
        return 0 if self.source is None else self.source.received_bytes

    def tell(self, network_bytes: int) -> None:
        """Say how much was taken of the network."""
        if self._encoder is not None:
            answer = Answer(
                network_bytes=network_bytes,
                length_bytes=self.length_bytes,
                received_bytes=self.received_bytes,
            )
            _write(answer, self._encoder)


def _deliver(job: Job, work: _Work) -> Answer:
    from edgeml.meter import Meter, Terms
    from edgeml.metered_source import MeteredSource
    from edgeml.nearby_source import NearbySource
    from edgeml.source import CountedSource, DirectorySource, HttpSource
    from edgeml.wire import WireMeter

    if isinstance(job.repository, str):
        work.source = CountedSource(DirectorySource(Path(job.repository)))
        return _obtain(job, work, work.source)
    terms = Terms(job.allowance_bytes, job.bytes_per_s, job.allowance_wait_s, job.tell_bytes)
    meter = Meter(terms, work.tell, WireMeter(None if job.allowance_bytes is None else UNREAD_BYTES))
    with ExitStack() as stack:
        # Last of all: what comes while the way is closed was taken of the network, too.
        stack.callback(meter.settle)
        fleet = MeteredSource(job.repository.open(stack, meter), meter)
        nearby = NearbySource(HttpSource(job.cache), fleet) if job.cache else None
        work.source = CountedSource(nearby or fleet)
        try:
            return _obtain(job, work, work.source)
        except (DigestMismatchError, TransferError) as error:
            if nearby is None or not nearby.was_asked:
                raise
            logger.warning("without the cache nearby: %s", error.message)
            nearby.give_up()
            return _obtain(job, work, work.source)


def _obtain(job: Job, work: _Work, source: CountedSource) -> Answer:
    from edgeml.lock import waiting_lock
    from edgeml.rebuild import obtain
    from edgeml.trust import TrustStore

    from .storeroom import check_room

    directory = Path(job.trust_directory)
    # One at a time: of two children that refresh side by side, the slower one would put back older metadata.
    with waiting_lock(directory / LOCK, TRUST_WAIT_S):
        trust = TrustStore(directory, source, now_ms=job.now_ms)
        trust.refresh()
        if not job.target:
            return Answer(finished=True, clock_trusted=trust.time.clock_trusted)
        target = trust.target(job.target)
    work.length_bytes = target.length_bytes
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


def _failed(error: EdgemlError, work: _Work) -> Answer:
    answer = Answer(
        finished=True, error=type(error).__name__, message=error.message, hint=error.hint,
        length_bytes=work.length_bytes, received_bytes=work.received_bytes,
    )  # fmt: skip
    match error:
        case PostponedError():
            return msgspec.structs.replace(answer, wait_s=error.wait_s)
        case BudgetError():
            return msgspec.structs.replace(
                answer, budget=error.budget, observed=error.observed, unit=error.unit
            )
        case TransferError():
            return msgspec.structs.replace(answer, retry_after_s=error.retry_after_s)
        case _:
            return answer


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
        answer = _failed(error, work)
    _write(answer, encoder)


if __name__ == "__main__":
    main()
