"""The line before one worker: who waits, whose turn it is, and who is sent away.

Decides how threads take turns without one more thread: whoever is at the head runs the calls, for those behind it too
if they go together, then wakes the next. Requests are answered in the order in which they came; no more than
`waiting_max` wait; one whose deadline passes while it waits is never run. The decision itself is `batch`'s, the call
the worker's.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from edgeml.errors import BackendError, BudgetError, EdgemlError
from edgeml.manifest import Manifest

from .batch import Rules, Waiting, combine, may_batch, plan, retry_after_s, split, tails
from .ipc import Answer, TensorBytes

logger = logging.getLogger(__name__)

NO_DEADLINE: Final = math.inf
_SMOOTHING: Final = 0.2
"""How much the newest call counts in the recent latency."""

Call: TypeAlias = Callable[[Sequence[TensorBytes]], Answer]


class OverloadError(BudgetError):
    """Too many requests wait already. `retry_after_s` says when those will have been answered."""

    def __init__(self, release: str, waiting_max: int, retry_after_s: int) -> None:
        super().__init__(
            f"{waiting_max} requests wait for {release} already",
            budget=waiting_max,
            observed=waiting_max + 1,
            unit="requests",
            hint=f"ask less often, or again in {retry_after_s} s",
        )
        self.retry_after_s = retry_after_s


class LateError(EdgemlError):
    """The request's time was over before its turn came; it was not run."""

    def __init__(self, release: str) -> None:
        super().__init__(
            f"{release} had no time for the request before its deadline",
            hint="ask less often, or give it longer",
        )


class Ticket(ABC):
    """A request on its way through the line. How whoever waits for it is woken is its own business."""

    __slots__ = ("deadline_s", "leads", "outcome", "tensors", "waiting")

    def __init__(self, tensors: Sequence[TensorBytes], deadline_s: float) -> None:
        self.tensors = tensors
        self.deadline_s = deadline_s
        self.waiting: Waiting
        """What the decision needs of it, once it is in the line."""
        self.outcome: Answer | EdgemlError | None = None
        self.leads = False

    @abstractmethod
    def wake(self) -> None:
        """Hear that it is answered, late, or at the head; called once, with the line's lock held."""

    def answer(self) -> Answer:
        """Return what came of it, or raise it."""
        if isinstance(self.outcome, Answer):
            return self.outcome
        raise self.outcome or BackendError("the request was lost: its batch ended without an answer")


class _Visitor(Ticket):
    """A thread's ticket."""

    __slots__ = ("woken",)

    def __init__(self, tensors: Sequence[TensorBytes], deadline_s: float) -> None:
        super().__init__(tensors, deadline_s)
        self.woken = threading.Lock()
        self.woken.acquire()

    def wake(self) -> None:
        self.woken.release()


class Line:
    """Threads before one worker. `ask` may be called from any number of them."""

    def __init__(self, manifest: Manifest, rules: Rules, call: Call) -> None:
        """Make an empty line.

        Args:
            manifest: the model that answers.
            rules: how many may wait, and go together.
            call: answers one request; called from one thread at a time.
        """
        self._manifest = manifest
        self._rules = rules
        self._call = call
        self._batches = rules.batch_max > 1 and may_batch(manifest)
        self._lock = threading.Lock()
        self._arrival = threading.Condition(self._lock)
        self._led = False
        self._behind: list[Ticket] = []
        self._call_s = 0.0

    def ask(self, tensors: Sequence[TensorBytes], deadline_s: float = NO_DEADLINE) -> Answer:
        """Answer one request when its turn comes.

        Args:
            tensors: what the model takes, checked.
            deadline_s: until when it may wait, on the monotonic clock.

        Raises:
            OverloadError: Too many wait already.
            LateError: The deadline passed before it was run.
            BackendError: As `call`.
        """
        if not self._batches and self._take_head():
            return self._ask_at_once(tensors, deadline_s)
        ticket = _Visitor(tensors, deadline_s)
        self.enter(ticket)
        try:
            if not ticket.leads:
                self._wait(ticket)
            if ticket.leads:
                self._lead(ticket)
        except BaseException:
            # Ctrl-C, too: nobody else may wait for a thread that has left.
            self.leave(ticket)
            raise
        return ticket.answer()

    def _take_head(self) -> bool:
        """Take the head of the line if nobody has it."""
        with self._lock:
            if self._led:
                return False
            self._led = True
            return True

    def _ask_at_once(self, tensors: Sequence[TensorBytes], deadline_s: float) -> Answer:
        """Answer at the head, alone: most requests find nobody before them, and need neither ticket nor plan."""
        try:
            started_s = time.monotonic()
            if deadline_s <= started_s:
                raise self.late()
            try:
                return self._call(tensors)
            finally:
                self.took(time.monotonic() - started_s)
        finally:
            with self._lock:
                self._pass_on()

    @property
    def batches(self) -> bool:
        """Whether requests may go together."""
        return self._batches

    def enter(self, ticket: Ticket) -> None:
        """Take a place in the line, perhaps its head. Whoever has the head runs its request, then calls `leave`.

        Raises:
            OverloadError: Too many wait already.
        """
        rows = ticket.tensors[0].shape[0] if self._batches else 1
        looks = tails(ticket.tensors) if self._batches else ()
        ticket.waiting = Waiting(time.monotonic(), ticket.deadline_s, rows, looks)
        with self._lock:
            if not self._led:
                self._led = ticket.leads = True
                return
            if len(self._behind) >= self._rules.waiting_max:
                together = self._rules.batch_max if self._batches else 1
                retry_s = retry_after_s(len(self._behind), self._call_s, together)
                raise OverloadError(self._manifest.release, self._rules.waiting_max, retry_s)
            self._behind.append(ticket)
            if self._batches:
                self._arrival.notify()

    def _wait(self, ticket: _Visitor) -> None:
        """Wait until the ticket is answered, at the head, or late."""
        if ticket.deadline_s == NO_DEADLINE:
            # Whoever is ahead is bounded by its own timeout, so the turn comes.
            ticket.woken.acquire()
            return
        left_s = min(max(ticket.deadline_s - time.monotonic(), 0.0), threading.TIMEOUT_MAX)
        if ticket.woken.acquire(timeout=left_s):
            return
        if not self.give_up(ticket):
            # It was taken at the last moment.
            ticket.woken.acquire()

    def late(self) -> LateError:
        """What a request is told that is too late."""
        return LateError(self._manifest.release)

    def give_up(self, ticket: Ticket) -> bool:
        """Let a request be late, if nobody has taken it yet; tell whether it is."""
        with self._lock:
            if ticket not in self._behind:
                return False
            self._behind.remove(ticket)
            ticket.outcome = self.late()
            return True

    def _lead(self, ticket: Ticket) -> None:
        """Run what is due at the head of the line, then give the head to the next."""
        batch: list[Ticket] = []
        try:
            batch = self._gather(ticket)
            if batch:
                self._run(batch)
        finally:
            with self._lock:
                for one in batch:
                    if one is not ticket:
                        one.wake()
                ticket.leads = False
                self._pass_on()

    def _pass_on(self) -> Ticket | None:
        """Give the head of the line to the next and return it; with the lock held."""
        following = self._behind.pop(0) if self._behind else None
        self._led = following is not None
        if following is not None:
            following.leads = True
            following.wake()
        return following

    def leave(self, ticket: Ticket) -> Ticket | None:
        """Give up the place in the line, whichever it is, if it still has one; return who got the head by that."""
        with self._lock:
            if ticket.leads:
                ticket.leads = False
                return self._pass_on()
            if ticket in self._behind:
                self._behind.remove(ticket)
            return None

    def _gather(self, ticket: Ticket) -> list[Ticket]:
        """Take who goes now out of the line, and send away who is late."""
        with self._lock:
            while True:
                line = [ticket, *self._behind] if self._batches else [ticket]
                now_s = time.monotonic()
                decided = plan([one.waiting for one in line], now_s, self._rules)
                if decided.wait_s <= 0 or not self._batches:
                    break
                self._arrival.wait(decided.wait_s)
            late = [line[i] for i in decided.late]
            # A thread that is too late itself tells its caller so, and leaves the others to the next.
            taken = [] if 0 in decided.late else [line[i] for i in decided.taken]
            gone = {id(one) for one in (*late, *taken)}
            self._behind = [one for one in self._behind if id(one) not in gone]
            for one in late:
                one.outcome = self.late()
                if one is not ticket:
                    one.wake()
        return taken

    def took(self, duration_s: float) -> None:
        """Hear how long a call took."""
        self._call_s += (duration_s - self._call_s) * (_SMOOTHING if self._call_s else 1.0)

    def _run(self, batch: Sequence[Ticket]) -> None:
        started_s = time.monotonic()
        try:
            if len(batch) == 1:
                self._run_one(batch[0])
            else:
                self._run_together(batch)
        finally:
            self.took(time.monotonic() - started_s)

    def _run_one(self, ticket: Ticket) -> None:
        try:
            ticket.outcome = self._call(ticket.tensors)
        except EdgemlError as error:
            ticket.outcome = error

    def _run_together(self, batch: Sequence[Ticket]) -> None:
        try:
            answer = self._call(combine([one.tensors for one in batch]))
            parts = split(answer, [one.waiting.rows for one in batch], self._manifest.task)
        except EdgemlError:
            # One of them may have been the reason, and the others must not suffer for it. A worker that died answers
            # none of them, and at once.
            parts = []
        except ValueError as error:
            logger.warning("%s is not batched any more: %s", self._manifest.release, error)
            self._batches = False
            parts = []
        if not parts:
            for one in batch:
                self._run_one(one)
            return
        for one, part in zip(batch, parts, strict=True):
            one.outcome = part
