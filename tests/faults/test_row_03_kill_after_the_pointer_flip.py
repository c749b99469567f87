"""Row 3: the agent is killed when the table of slots names the new release and the journal does not say so yet.

The trial is over by then (the journal says COMMITTING), so the next life commits again instead of rolling back: the
catalogue's "uncommitted" is our state before, TRIAL, in which the pointer has not moved.
"""

import pytest

from agent.journal import peek
from agent.slots import SlotTable
from edgeml.twin import DeviceState, Outcome

from .durability import COMMIT, FLIP
from .points import MODEL, Cut, each, stage

__all__ = ["stage"]
pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def test_the_next_life_commits_again(stage):
    later = Cut(since=(FLIP,)).seen(stage.count("count", "2.0.0"))
    # A window that was written meanwhile would count: in the lives that are cut there may be none.
    commit = [(point.call, point.path) for point in later if "telemetry" not in point.path].index(COMMIT)
    assert commit > 2

    def attempt(at):
        storage = stage.copy(f"at-{at}", "2.0.0")
        stage.cut(storage, "cut", "2.0.0", Cut(at, since=(FLIP,)))
        flipped = SlotTable(storage).slots(MODEL).current.release
        state = peek(storage / "journal.db")[MODEL].state
        answered = stage.live(storage, storage.parent / "after", "2.0.0")
        entry = peek(storage / "journal.db")[MODEL]
        return flipped, state, answered, entry.outcome, SlotTable(storage).slots(MODEL).current.release

    new = f"{MODEL}@2.0.0"
    chosen = sorted({1, commit // 2, commit - 1})
    assert each(attempt, chosen) == [
        (new, DeviceState.COMMITTING, "2.0.0", Outcome.COMMITTED, new) for _ in chosen
    ]


def test_a_commit_that_had_only_begun_serves_what_it_commits(stage):
    """The journal says COMMITTING and the table still names the old release, which the next life serves at first."""
    begun = Cut(0, since=(FLIP,))
    storage = stage.copy("looked-at", "2.0.0")
    stage.cut(storage, "cut", "2.0.0", begun)
    assert SlotTable(storage).slots(MODEL).current.release == f"{MODEL}@1.0.0"
    assert peek(storage / "journal.db")[MODEL].state is DeviceState.COMMITTING
    assert stage.survive("begun", "2.0.0", [begun], "2.0.0", Outcome.COMMITTED) == 1
