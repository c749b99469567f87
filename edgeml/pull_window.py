"""The pieces of one file that are asked for and have not come: which to ask for now, and which again.

Decides how long pieces are (short at first, twice as long for each that comes soon), how many may be under way (one until
they are as long as can be, then one more for each that comes when first asked for, half as many when one is lost), how long
to wait for one (by how long the others took, twice as long each of the first times), and which answers are believed to be
answers. Pure: `now_s` comes from outside, and never goes back. Memory is bounded by the window, whatever a peer sends; whether
the bytes are the right ones is checked above, as with HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from .errors import PermanentTransferError, TransferError
from .pull import Answer, Status

PIECE_BYTES: Final = 32 << 10
"""The longest."""
PIECE_BYTES_FIRST: Final = 4 << 10
PIECE_BYTES_MIN: Final = 1 << 10
QUICK_S: Final = 5.0
SLOW_S: Final = 15.0
"""A piece that takes no more makes the next ones twice as long; one that takes this or more, half."""
WIDTH_MAX: Final = 8
"""Pieces asked for or waiting to be read; 256 KiB."""
WAIT_FIRST_S: Final = 5.0
WAIT_MIN_S: Final = 1.0
WAIT_MAX_S: Final = 60.0
DOUBLINGS_MAX: Final = 3
_SMOOTHING: Final = 0.25


@dataclass(frozen=True, slots=True)
class Wanted:
    """A piece to ask for."""

    id: int
    offset: int
    length: int


@dataclass(slots=True)
class _Asked:
    """A piece that was asked for."""

    wanted: Wanted
    at_s: float
    again_at_s: float
    times: int = 1


class PullWindow:
    """One file, from an offset to its end."""

    def __init__(self, offset: int, first_id: int) -> None:
        self._next_offset = offset
        self._next_id = first_id
        self._read_offset = offset
        self._total: int | None = None
        self._asked: dict[int, _Asked] = {}
        self._ready: dict[int, bytes] = {}
        self._width = 1
        self._length = PIECE_BYTES_FIRST
        self._doubtful: dict[int, float] = {}
        """How long the last pieces took that were asked for more than once."""
        self._wait_s = WAIT_FIRST_S
        self._has_learnt = False
        self.asked_again = 0
        """How often a piece was asked for again."""

    @property
    def next_id(self) -> int:
        """First id that was not used."""
        return self._next_id

    @property
    def finished(self) -> bool:
        """Whether the file's end has been taken."""
        return self._total is not None and self._read_offset >= self._total

    @property
    def unread_bytes(self) -> int:
        """What has come and was not taken."""
        return sum(len(piece) for piece in self._ready.values())

    def due(self, now_s: float, left_bytes: int | None = None) -> list[Wanted]:
        """Return what to ask for now; it counts as asked for.

        Args:
            now_s: monotonic time.
            left_bytes: what may still be taken of the network, as far as is known; what would come after that is not
                asked for, for it would be paid for and thrown away. One piece always is.
        """
        wanted = []
        for asked in self._asked.values():
            if now_s >= asked.again_at_s:
                asked.times += 1
                asked.again_at_s = now_s + min(
                    WAIT_MAX_S, self._wait_s * 2.0 ** min(asked.times - 1, DOUBLINGS_MAX)
                )
                self._width = max(1, self._width // 2)
                self.asked_again += 1
                wanted.append(asked.wanted)
        while self._may_ask(left_bytes):
            one = Wanted(self._next_id, self._next_offset, self._length)
            self._asked[one.id] = _Asked(one, now_s, now_s + self._wait_s)
            self._next_id += 1
            self._next_offset += self._length
            wanted.append(one)
        return wanted

    def wait_s(self, now_s: float) -> float:
        """How long until something must be asked for again."""
        return max(0.0, min((one.again_at_s for one in self._asked.values()), default=now_s) - now_s)

    def ask_again(self, now_s: float) -> None:
        """Ask for everything that is under way again: the link was lost, and it with it."""
        for asked in self._asked.values():
            asked.again_at_s = now_s

    def answered(self, answer: Answer, now_s: float) -> bool:
        """Take an answer in; False if it answers nothing that is under way: it came twice, or late.

        Raises:
            PermanentTransferError: There is no such file.
            TransferError: The answer is not what was asked for, or nobody answers.
        """
        asked = self._asked.get(answer.id)
        if asked is None:
            self._learn_of_a_second(answer.id)
            return False
        match answer.status:
            case Status.MISSING:
                raise PermanentTransferError("the fleet has no such file", hint="check what is published")
            case Status.OFF:
                raise TransferError("the fleet answers no pulls", hint="pulls.bytes_per_s in fleet.toml")
            case Status.PIECE:
                self._check(asked.wanted, answer)
        del self._asked[answer.id]
        self._total = answer.total_bytes
        if answer.piece:
            self._ready[answer.offset] = answer.piece
        took_s = now_s - asked.at_s
        if asked.times == 1:
            self._learn(took_s)
        else:
            # Nobody knows which request was answered, unless another answer comes.
            self._doubtful[answer.id] = took_s
            if len(self._doubtful) > WIDTH_MAX:
                del self._doubtful[next(iter(self._doubtful))]
        return True

    def take(self) -> bytes | None:
        """Return the next bytes in order; None if they have not come."""
        piece = self._ready.pop(self._read_offset, None)
        if piece is not None:
            self._read_offset += len(piece)
        return piece

    def _learn(self, took_s: float) -> None:
        """Adapt to how long a piece took that was asked for once."""
        smooth_s = self._wait_s + _SMOOTHING * (4 * took_s - self._wait_s) if self._has_learnt else 0.0
        self._wait_s = min(WAIT_MAX_S, max(WAIT_MIN_S, 3 * took_s, smooth_s))
        self._has_learnt = True
        if took_s >= SLOW_S:
            self._length = max(PIECE_BYTES_MIN, self._length // 2)
        elif self._length == PIECE_BYTES:
            self._width = min(WIDTH_MAX, self._width + 1)
        elif took_s <= QUICK_S:
            self._length *= 2

    def _learn_of_a_second(self, identity: int) -> None:
        """Adapt to a second answer: nothing was lost, the first was to the first request, and the wait was too short."""
        took_s = self._doubtful.pop(identity, None)
        if took_s is not None:
            self._wait_s = min(WAIT_MAX_S, max(self._wait_s, took_s))

    def _may_ask(self, left_bytes: int | None) -> bool:
        if self._total is None:
            return not self._asked
        ahead = len(self._asked) + len(self._ready)
        ahead_bytes = self.unread_bytes + sum(one.wanted.length for one in self._asked.values())
        if ahead and left_bytes is not None and ahead_bytes >= left_bytes:
            return False
        return self._next_offset < self._total and ahead < self._width

    def _check(self, wanted: Wanted, answer: Answer) -> None:
        if self._total not in {None, answer.total_bytes}:
            raise TransferError(f"the file changed from {self._total} to {answer.total_bytes} bytes")
        if answer.total_bytes < wanted.offset:
            raise TransferError(
                f"asked for bytes from {wanted.offset} of a file that has {answer.total_bytes}"
            )
        expected = min(wanted.length, answer.total_bytes - wanted.offset)
        if answer.offset != wanted.offset or len(answer.piece) != expected:
            raise TransferError(
                f"asked for {expected} bytes from {wanted.offset}, the fleet sent {len(answer.piece)} from {answer.offset}"
            )
