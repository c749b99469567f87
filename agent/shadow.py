"""Shadow mode: a newcomer answers a share of what is asked, beside the variant that serves, and nobody sees its answers.

Decides which requests it is given (an even share of them, and none while it is still busy with one: what is asked never
waits for it), when two answers agree, and what is counted. What follows from the counts is `health`'s business.
"""

from __future__ import annotations

import array
import logging
import queue
import threading
from collections.abc import Sequence
from typing import Final

import msgspec

from edgeml.errors import EdgemlError
from edgeml.tensors import DType

from .ipc import Answer, TensorBytes
from .supervisor import Worker

logger = logging.getLogger(__name__)

DIFFERENCE_MAX: Final = 0.1
"""Outputs that are no classes agree if the mean of their absolute differences is below this share of the mean of the
serving variant's absolute values."""
VALUES_MAX: Final = 4096
"""How many values of an output are compared: this is done in the supervisor, one by one."""
STOP_S: Final = 5.0
_MILLION: Final = 1_000_000
_FLOATS: Final = {DType.FLOAT32: "f", DType.FLOAT64: "d"}


class Compared(msgspec.Struct, frozen=True):
    """What came of it. `skipped` requests found the newcomer busy; `failed` ones got no answer from it."""

    compared: int = 0
    disagreed: int = 0
    failed: int = 0
    skipped: int = 0

    @property
    def disagreement(self) -> float:
        """Share of the requests given to the newcomer that it answered otherwise, or not at all; 0 if there were none."""
        given = self.compared + self.failed
        return (self.disagreed + self.failed) / given if given else 0.0

    def describe(self) -> str:
        """In one line.

        >>> Compared(100, 4, 1, 7).describe()
        'in the shadow 100 answers, 4 other than those given, 1 failed'
        """
        failed = f", {self.failed} failed" if self.failed else ""
        return f"in the shadow {self.compared} answers, {self.disagreed} other than those given{failed}"


def agree(given: Answer, shadowed: Answer) -> bool:
    """Tell whether two answers to one request say the same.

    Classes, if both predict one; else each output: its shape, and its values within DIFFERENCE_MAX where they are
    32 or 64 bit floats, all its bytes where they are not.
    """
    if given.predicted is not None and shadowed.predicted is not None:
        return given.predicted == shadowed.predicted
    if len(given.outputs) != len(shadowed.outputs):
        return False
    return all(map(_same, given.outputs, shadowed.outputs))


class Shadow:
    """A newcomer in the shadow of the variant that serves.

    Args:
        worker: the newcomer; it still belongs to the caller.
        share: of the requests, in (0, 1].
    """

    def __init__(self, worker: Worker, share: float) -> None:
        self.worker = worker
        self._share_millionths = round(share * _MILLION)
        self._owed_millionths = 0
        self._lock = threading.Lock()
        self._counts = Compared()
        self._given: queue.SimpleQueue[tuple[tuple[TensorBytes, ...], Answer] | None] = queue.SimpleQueue()
        self._busy = False
        self._thread = threading.Thread(target=self._answer, name="shadow", daemon=True)
        self._thread.start()

    @property
    def counts(self) -> Compared:
        """What came of it so far."""
        with self._lock:
            return self._counts

    def offer(self, tensors: Sequence[TensorBytes], given: Answer) -> None:
        """Take a request that was answered, if its turn has come; returns at once."""
        with self._lock:
            self._owed_millionths += self._share_millionths
            if self._owed_millionths < _MILLION:
                return
            self._owed_millionths -= _MILLION
            if self._busy:
                self._counts = msgspec.structs.replace(self._counts, skipped=self._counts.skipped + 1)
                return
            self._busy = True
        self._given.put((tuple(tensors), given))

    def close(self) -> None:
        """Take no more; the worker goes on."""
        self._given.put(None)
        self._thread.join(STOP_S)

    def _answer(self) -> None:
        while (taken := self._given.get()) is not None:
            tensors, given = taken
            try:
                agrees: bool | None = agree(given, self.worker.infer(tensors))
            except EdgemlError as error:
                logger.warning("%s fails in the shadow: %s", self.worker.manifest.release, error.message)
                agrees = None
            with self._lock:
                counts = self._counts
                self._counts = msgspec.structs.replace(
                    counts,
                    compared=counts.compared + (agrees is not None),
                    disagreed=counts.disagreed + (agrees is False),
                    failed=counts.failed + (agrees is None),
                )
                self._busy = False


def _same(given: TensorBytes, shadowed: TensorBytes) -> bool:
    if (given.dtype, tuple(given.shape)) != (shadowed.dtype, tuple(shadowed.shape)):
        return False
    if bytes(given.data) == bytes(shadowed.data):
        return True
    code = _FLOATS.get(given.dtype)
    if code is None:
        return False
    ours, theirs = (array.array(code, bytes(one.data))[:VALUES_MAX] for one in (given, shadowed))
    difference = sum(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    # Not a number is never within bounds, and so agrees with nothing but itself.
    return difference <= DIFFERENCE_MAX * sum(map(abs, ours))
