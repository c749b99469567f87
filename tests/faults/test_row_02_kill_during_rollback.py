"""Row 2: a real agent is killed at the changes that it makes to the disk while it refuses a bad release and goes back.

The release answers its golden vectors wrongly. `make soak` kills at every point from its fetch on, and twice.
"""

import pytest

from edgeml.twin import Outcome

from .points import SOAK, Cut, each, sample_of, stage

__all__ = ["stage"]
pytestmark = [pytest.mark.processes, pytest.mark.timeout(7200 if SOAK else 600)]


def test_a_rollback_is_completed_by_the_next_life(stage):
    points = stage.count("count", "3.0.0")
    [fetched] = [point.index for point in points if point.call == "rename" and point.path.endswith(".edgeml")]
    # Fetched, verified, tried, found wanting, taken back, said.
    after = points[fetched:]
    chosen = after if SOAK else sample_of(after, 8)
    cuts = [[Cut(point.index)] for point in chosen]
    cuts += [[Cut(point.index), Cut(30)] for point in (chosen if SOAK else chosen[:2])]

    def attempt(numbered):
        number, several = numbered
        return stage.survive(f"back-{number}", "3.0.0", several, "1.0.0", Outcome.ROLLED_BACK)

    reached = sum(each(attempt, enumerate(cuts)))
    print(f"{len(after)} points found, {len(cuts)} lives or pairs of them tried, {reached} killed")
    assert reached > 0.8 * len(cuts)
