"""Row 1: a real agent is killed at every change that it, SQLite, or its fetching child makes to the disk.

The points are counted in a life that nobody disturbs (`points.py`). Here a sample of them is tried, one of each kind
and every commit of the journal; `make soak` tries all of them, whole and torn, and pairs.
"""

import itertools

import pytest

from edgeml.twin import Outcome

from .points import SOAK, Cut, each, sample_of, stage

__all__ = ["stage"]
pytestmark = [pytest.mark.processes, pytest.mark.timeout(7200 if SOAK else 600)]


def test_an_agent_killed_at_any_change_to_its_disk_ends_on_the_new_release(stage, record_property):
    points = stage.count("count", "2.0.0")
    chosen = points if SOAK else sample_of(points, 18)

    def attempt(point):
        return stage.survive(f"whole-{point.index}", "2.0.0", [Cut(point.index)], "2.0.0", Outcome.COMMITTED)

    reached = sum(each(attempt, chosen))
    record_property("points", f"{len(points)} found, {len(chosen)} tried, {reached} killed")
    print(f"{len(points)} points found, {len(chosen)} tried, {reached} lives killed there")
    assert len(points) > 80, "fewer than an update makes"
    # A life that nobody disturbs lasts longer on a busy machine, and writes more of what is written now and then.
    assert reached > 0.8 * len(chosen), "too many lives ended before their point"


def test_a_write_that_is_torn_by_the_kill_is_never_taken_for_a_whole_one(stage):
    points = [point for point in stage.count("count-torn", "2.0.0") if point.call == "write"]
    chosen = points if SOAK else points[:: len(points) // 4]

    def attempt(point):
        return stage.survive(
            f"torn-{point.index}", "2.0.0", [Cut(point.index, torn=True)], "2.0.0", Outcome.COMMITTED
        )

    reached = sum(each(attempt, chosen))
    print(f"{len(points)} writes found, {len(chosen)} torn, {reached} lives killed there")
    assert reached > 0.5 * len(chosen), "too many lives ended before their point"


def test_two_kills_in_a_row_end_on_the_new_release_too(stage):
    points = stage.count("count-twice", "2.0.0")
    step = 1 if SOAK else len(points) // 4
    # Each second kill is at another distance from the first, so that pairs of all kinds come up.
    seconds = itertools.cycle(range(3, len(points), 11))

    def attempt(pair):
        first, second = pair
        cuts = [Cut(first.index), Cut(second)]
        return stage.survive(f"twice-{first.index}", "2.0.0", cuts, "2.0.0", Outcome.COMMITTED)

    pairs = list(zip(points[::step], seconds, strict=False))
    reached = sum(each(attempt, pairs))
    print(f"{len(pairs)} pairs tried, {reached} lives killed")
    assert reached > len(pairs), "no second life was killed"
