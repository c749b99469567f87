"""Finds a place for each label of a picture, so that none covers another, or a mark.

Decides the order in which places are tried: beside the mark first, then further away, with a line that leads there. Pure.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from .svg import width_px

MARK_PX: Final = 7.0
"""Half the room that a mark takes."""
DISTANCES_PX: Final = (0.0, 14.0, 30.0, 48.0, 70.0)
FONT_PX: Final = 11.0
_DIRECTIONS: Final = ((1, 0), (-1, 0), (1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1))


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether they overlap."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    def holds(self, other: Box) -> bool:
        """Whether the other lies inside."""
        within = self.left <= other.left and other.right <= self.right
        return within and self.top <= other.top and other.bottom <= self.bottom


@dataclass(frozen=True, slots=True)
class Spot:
    """A mark that is to have a label."""

    x: float
    y: float
    label: str


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a label lies; `leads` if it is so far from its mark that a line has to lead there."""

    spot: Spot
    box: Box
    leads: bool


def place_labels(spots: Sequence[Spot], inside: Box, taken: Sequence[Box] = ()) -> tuple[Placed, ...]:
    """Place labels in the order of their importance; one that finds no place is left out."""
    marks = [Box(one.x - MARK_PX, one.y - MARK_PX, one.x + MARK_PX, one.y + MARK_PX) for one in spots]
    used = [*taken, *marks]
    placed = []
    for spot in spots:
        for distance, direction in itertools.product(DISTANCES_PX, _DIRECTIONS):
            box = _box(spot, direction, distance)
            if inside.holds(box) and not any(box.meets(one) for one in used):
                used.append(box)
                placed.append(Placed(spot, box, distance > 0))
                break
    return tuple(placed)


def _box(spot: Spot, direction: tuple[int, int], distance: float) -> Box:
    wide, high = width_px(spot.label, FONT_PX) + 4, FONT_PX + 3
    across, down = direction
    reach = MARK_PX + distance
    left = spot.x - wide / 2 if not across else spot.x + reach if across > 0 else spot.x - reach - wide
    # A label beside its mark stands on the same height, a slanting one a line above or below.
    middle = spot.y + down * ((reach + high / 2) if not across else (high * 0.6 + distance * 0.7))
    return Box(left, middle - high / 2, left + wide, middle + high / 2)
