"""Row 4: the agent is killed when the journal says committed; what comes after the commit is done by the next life."""

import pytest

from agent.journal import peek
from agent.slots import SlotTable
from edgeml.twin import Outcome

from .durability import COMMIT, FLIP
from .points import MODEL, Cut, each, stage

__all__ = ["stage"]
pytestmark = [pytest.mark.processes, pytest.mark.timeout(600)]


def test_it_stays_committed_and_is_not_fetched_again(stage):
    later = Cut(since=(FLIP, COMMIT)).seen(stage.count("count", "2.0.0"))

    def attempt(at):
        storage = stage.copy(f"at-{at}", "2.0.0")
        stage.cut(storage, "cut", "2.0.0", Cut(at, since=(FLIP, COMMIT)))
        before = peek(storage / "journal.db")[MODEL]
        answered = stage.live(storage, storage.parent / "after", "2.0.0")
        after = peek(storage / "journal.db")[MODEL]
        words = (storage.parent / "after" / "agent.log").read_text()
        assert "found sample@2.0.0" not in words, words
        assert SlotTable(storage).slots(MODEL).current.release == f"{MODEL}@2.0.0"
        return before.outcome, answered, after.outcome, after.fetched_bytes == before.fetched_bytes

    # The first call after the record, the next commit, and what is cleared away.
    chosen = sorted({1, 2, len(later) - 5, len(later) - 1})
    assert each(attempt, chosen) == [(Outcome.COMMITTED, "2.0.0", Outcome.COMMITTED, True) for _ in chosen]
