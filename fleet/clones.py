"""Notices two devices that have one identity, as a copied SD card makes them.

Decides it by their lives. Every start of an agent is a life with a name of its own (`session`), and a device has one life
after the other. Two devices with one login throw each other off the broker and come back, so their lives alternate: one
is heard, then another, then the first again. A message may come late, so that counts only where LATE_S lies between each
of the three: then the first life has spoken before the other and after it, which no single device can do. Pure: what
was known, who is heard and when in, what is known now out. What follows from it is decided in `quarantines` and
`hearing`.

Not noticed: two that are never there together, and one that calls itself something else at the broker than its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

LATE_S: Final = 60.0
"""How long a message may be on its way."""
RETURNS_MIN: Final = 2
"""One would do if nothing ever took longer than LATE_S."""
RETURNS_WITHIN_S: Final = 86_400.0
LIVES_MAX: Final = 8
"""Lives that are remembered. Forgetting one can only delay the verdict."""


@dataclass(frozen=True, slots=True)
class Life:
    """One life of an agent, by what the controller has heard."""

    session: str
    heard_s: float
    """When it was first heard, or returned."""
    other_s: float | None = None
    """When another life was first heard that had certainly spoken after it; None: none was."""


@dataclass(frozen=True, slots=True)
class Lives:
    """What is known of the lives under one identity."""

    lives: tuple[Life, ...] = ()
    """Who was heard last is last."""
    returns_s: tuple[float, ...] = ()
    """When a life was heard that had certainly spoken before another and after it."""

    @property
    def are_of_two(self) -> bool:
        """Whether no single device can have lived them."""
        return len(self.returns_s) >= RETURNS_MIN


def hear(known: Lives, session: str, now_s: float) -> Lives:
    """Take in that a device has introduced itself on a new link.

    Args:
        known: what was known.
        session: the life that speaks.
        now_s: monotonic time of the controller.

    >>> lives = Lives()
    >>> for number in range(4):
    ...     lives = hear(lives, "ab"[number % 2], number * 70.0)
    >>> lives.returns_s, lives.are_of_two
    ((140.0, 210.0), True)
    """
    returns_s = tuple(at_s for at_s in known.returns_s if now_s - at_s <= RETURNS_WITHIN_S)
    speaking = Life(session, now_s)
    others = []
    for one in known.lives:
        if one.session == session:
            speaking = one
        elif one.other_s is None and now_s - one.heard_s > LATE_S:
            others.append(Life(one.session, one.heard_s, now_s))
        else:
            others.append(one)
    if speaking.other_s is not None and now_s - speaking.other_s > LATE_S:
        speaking, returns_s = Life(session, now_s), (*returns_s, now_s)
    return Lives((*others, speaking)[-LIVES_MAX:], returns_s[-RETURNS_MIN:])
