"""Row 1, what a kill does not show: after a power loss only what was synced is sure to be on disk.

Nothing is taken away here; the order of real calls is held against what may be relied upon (`durability.py`). What a
disk does that lies about a sync is not covered.
"""

import pytest

from edgeml.twin import Outcome

from .durability import FLIP, undurable
from .points import MODEL, SOAK, Cut, Life, Point, each, stage

__all__ = ["stage"]
pytestmark = [pytest.mark.processes, pytest.mark.timeout(7200 if SOAK else 600)]


def test_the_rule_itself_sees_what_is_missing():
    def points(*calls):
        return [Point(index, call, 0, path, source) for index, (call, path, source) in enumerate(calls)]

    written = [("write", "store/a.part", ""), ("sync", "store/a.part", "")]
    named = [("rename", "store/a.edgeml", "a.part"), ("sync", "store", "")]
    flip, flipped = ("rename", "slots.json", ".t"), ("sync", ".", "")
    commit = ("sync", "journal.db-wal", "")
    assert undurable([points(*written, *named, flip, flipped, commit)]) == []
    assert undurable([points(*written[:1], *named, flip, flipped, commit)]) == ["store/a.edgeml"]
    assert undurable([points(*written, *named[:1], flip, flipped, commit)]) == ["store/a.edgeml"]
    assert undurable([points(*written, *named, flip), points(commit)]) == ["slots.json"]


def lives_of(stage, name, kill_at):
    """The points of a life that is killed at one, and of the life after it."""
    storage = stage.copy(name, "2.0.0")
    first = stage.cut(storage, "first", "2.0.0", Cut(kill_at))
    second = Life(storage.parent / "second", storage, stage.library)
    try:
        assert second.run_to(lambda: second.is_done(stage.digest("2.0.0")), "the end")
        assert second.entry().outcome is Outcome.COMMITTED, MODEL
    finally:
        second.kill()
    made = first.points[:-1] if len(first.points) == kill_at + 1 else first.points
    return [made, second.points]


def test_the_power_may_go_after_any_kill_between_fetch_and_commit(stage):
    points = stage.count("count", "2.0.0")
    assert undurable([points]) == []
    [flip] = [point.index for point in points if (point.call, point.path) == FLIP]
    first = next(point.index for point in points if point.path.endswith(".part"))
    named = next(point.index for point in points if point.path.endswith(".edgeml"))
    # Around the two renames that everything hangs on.
    around = range(first, flip + 5) if SOAK else (named - 1, named, named + 1, flip, flip + 1)
    chosen = list(around)
    results = each(lambda index: undurable(lives_of(stage, f"at-{index}", index)), chosen)
    print(f"{len(chosen)} kills tried")
    assert {index: lost for index, lost in zip(chosen, results, strict=True) if lost} == {}
