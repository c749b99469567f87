"""How much one device may say to the controller.

Decides whether a message of a device is taken in, by what that device has sent lately: a bucket for its telemetry (by
messages and by bytes), one for what it says of itself, so that a backlog of rows never drowns the end of a deployment, and
one for its questions for pieces of files.
Other devices' messages do not count. Pure: what was sent, the time and a message in; what was sent now and an answer out.
Remembering it for each device is the business of `doorkeeper`.

What a device sends beyond its quota is not lost: nothing acknowledges it, so it stays on the device and is sent again.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import Final

from .config import QuotaSettings


class Kind(enum.Enum):
    """What a message counts as."""

    TALK = "talk"
    """What a device says of itself: presence, birth, reports; and what makes no sense."""
    TELEMETRY = "telemetry"
    """A batch of rows. The device keeps it until it is acknowledged."""
    PULL = "pull"
    """A question for a piece of a file. What the pieces may weigh is decided in `pulls`."""


@dataclass(frozen=True, slots=True)
class Sent:
    """What one device has sent and time has not made good yet. It runs off at the quota's rates; 0 is rest."""

    at_s: float
    talk: float = 0.0
    """Messages."""
    batches: float = 0.0
    batch_bytes: float = 0.0
    pulls: float = 0.0

    @property
    def at_rest(self) -> bool:
        """Whether the device may send all it ever may at once, as if it had never been heard."""
        return not (self.talk or self.batches or self.batch_bytes or self.pulls)


def run_off(sent: Sent, quota: QuotaSettings, now_s: float) -> Sent:
    """Let time pass. A clock that stands still or goes back makes nothing good."""
    elapsed_s = max(0.0, now_s - sent.at_s)
    return Sent(
        at_s=max(now_s, sent.at_s),
        talk=max(0.0, sent.talk - elapsed_s * quota.messages_per_s),
        batches=max(0.0, sent.batches - elapsed_s * quota.batches_per_s),
        batch_bytes=max(0.0, sent.batch_bytes - elapsed_s * quota.batch_bytes_per_s),
        pulls=max(0.0, sent.pulls - elapsed_s * quota.pulls_per_s),
    )


def weigh(
    sent: Sent | None, kind: Kind, payload_bytes: int, quota: QuotaSettings, now_s: float
) -> tuple[Sent, bool]:
    """Decide about one message; a refused one uses nothing up.

    Args:
        sent: of the device; None if nothing is known of it.
        kind: what the message counts as.
        payload_bytes: its length.
        quota: what a device may.
        now_s: monotonic time.

    Returns:
        The device's sent afterwards, and whether the message is taken in.

    >>> quota = QuotaSettings(messages_per_s=1.0, messages_burst=2)
    >>> sent, answers = None, []
    >>> for now_s in (0.0, 0.0, 0.0, 1.0, 1.0):
    ...     sent, taken = weigh(sent, Kind.TALK, 10, quota, now_s)
    ...     answers.append(taken)
    >>> answers
    [True, True, False, True, False]
    """
    now = run_off(sent or Sent(now_s), quota, now_s)
    match kind:
        case Kind.TALK:
            after = replace(now, talk=now.talk + 1)
        case Kind.TELEMETRY:
            after = replace(now, batches=now.batches + 1, batch_bytes=now.batch_bytes + payload_bytes)
        case Kind.PULL:
            after = replace(now, pulls=now.pulls + 1)
    fits = (
        _within(after.talk, quota.messages_burst)
        and _within(after.batches, quota.batches_burst)
        and _within(after.batch_bytes, quota.batch_bytes_burst)
        and _within(after.pulls, quota.pulls_burst)
    )
    return (after, True) if fits else (now, False)


_ROUNDING: Final = 1e-6
"""Of a message: what sums of fractions may be off."""


def _within(used: float, burst: float) -> bool:
    return used <= burst + _ROUNDING
