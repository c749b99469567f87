"""The journal and the slots on a real disk: what they survive."""

import sqlite3
import stat

import pytest

from agent.journal import Entry, Journal, peek
from agent.slots import SlotTable, demote, promote
from edgeml.errors import StateError, StorageError
from edgeml.ids import Digest, ModelName, ReleaseId
from edgeml.twin import DeviceState, Slot, Slots

M, KWS = ModelName("m"), ModelName("kws")
ENTRY = Entry(
    state=DeviceState.TRIAL, generation=7, attempt=2, release_counter=3, refused=(Digest("a" * 64),)
)


def slot(version):
    return Slot(ReleaseId(f"m@{version}"), Digest(f"{version:064x}"), "t", version)


def test_what_was_written_is_read_back_and_boots_never_repeat(tmp_path):
    boots = []
    for _ in range(3):
        journal = Journal(tmp_path / "journal.db")
        boots.append(journal.boot)
        journal.write(M, ENTRY)
        journal.close()
    journal = Journal(tmp_path / "journal.db")
    assert journal.load(M) == ENTRY
    assert boots == sorted(set(boots))
    assert stat.S_IMODE((tmp_path / "journal.db").stat().st_mode) == 0o600
    journal.close()


def test_a_journal_that_is_no_database_is_set_aside_and_a_new_one_begun(tmp_path):
    path = tmp_path / "journal.db"
    path.write_bytes(b"this is no database at all, not even a little" * 100)
    journal = Journal(path)
    assert journal.load(M) == Entry()
    assert journal.quarantined is not None
    assert journal.quarantined.read_bytes().startswith(b"this is no database")
    journal.close()


def test_a_locked_journal_is_an_error_and_not_set_aside(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    journal.write(M, ENTRY)
    journal.close()
    other = sqlite3.connect(tmp_path / "journal.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StorageError, match="locked"):
        Journal(tmp_path / "journal.db")
    other.execute("ROLLBACK")
    other.close()
    journal = Journal(tmp_path / "journal.db")
    assert journal.load(M) == ENTRY
    assert journal.quarantined is None
    journal.close()


def test_an_entry_that_cannot_be_read_is_set_aside(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    journal.write(M, ENTRY)
    journal.close()
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.execute('UPDATE machines SET entry = \'{"state": "dancing"}\'')
    connection.close()
    journal = Journal(tmp_path / "journal.db")
    assert journal.load(M) == Entry()
    assert journal.quarantined is not None
    journal.close()


def test_the_entries_of_other_models_outlive_one_that_cannot_be_read(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    for model in (M, KWS):
        journal.write(model, ENTRY)
    journal.close()
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.execute("UPDATE machines SET entry = x'ff' WHERE model = 'kws'")
    connection.close()
    for _ in range(2):
        journal = Journal(tmp_path / "journal.db")
        assert (journal.models, journal.load(M), journal.load(KWS)) == ((M,), ENTRY, Entry())
        journal.close()


def test_a_model_that_is_forgotten_leaves_the_others_alone(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    for model in (M, KWS):
        journal.write(model, ENTRY)
    journal.forget(KWS)
    journal.close()
    assert peek(tmp_path / "journal.db") == {M: ENTRY}


def test_a_journal_of_a_newer_agent_is_refused_not_destroyed(tmp_path):
    journal = Journal(tmp_path / "journal.db")
    journal.write(M, ENTRY)
    journal.close()
    with sqlite3.connect(tmp_path / "journal.db") as connection:
        connection.execute("UPDATE machines SET version = 99")
    connection.close()
    with pytest.raises(StateError, match="version 99"):
        Journal(tmp_path / "journal.db")
    assert not (tmp_path / "journal.corrupt").exists()


def test_a_journal_can_be_looked_at_while_an_agent_uses_it(tmp_path):
    assert peek(tmp_path / "journal.db") == {}
    journal = Journal(tmp_path / "journal.db")
    assert peek(tmp_path / "journal.db") == {}
    journal.write(M, ENTRY)
    assert peek(tmp_path / "journal.db") == {M: ENTRY}
    journal.close()


@pytest.mark.parametrize("made", [b"", None])
def test_a_journal_that_is_just_being_made_has_no_entries(tmp_path, made):
    path = tmp_path / "journal.db"
    if made is None:
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
    else:
        path.write_bytes(made)
    assert peek(path) == {}


def test_slots_survive_and_a_broken_table_is_set_aside(tmp_path):
    table = SlotTable(tmp_path)
    table.write(M, promote(promote(Slots(), slot(1)), slot(2)))
    assert SlotTable(tmp_path).slots(M) == Slots(slot(2), slot(1), slot(1))
    (tmp_path / "slots.json").write_bytes(b"\x00" * 50)
    broken = SlotTable(tmp_path)
    assert broken.slots(M) == Slots()
    assert broken.quarantined is not None


def test_the_slots_of_each_model_move_by_themselves(tmp_path):
    table = SlotTable(tmp_path)
    table.write(M, promote(Slots(), slot(1)))
    table.write(KWS, promote(Slots(), slot(3)))
    table.write(M, promote(table.slots(M), slot(2)))
    again = SlotTable(tmp_path)
    assert again.models == (KWS, M)
    assert (again.slots(M).current, again.slots(KWS).current) == (slot(2), slot(3))
    again.write(KWS, Slots())
    assert SlotTable(tmp_path).models == (M,)


def test_cleaning_keeps_what_slots_name_and_what_is_being_fetched(tmp_path):
    table = SlotTable(tmp_path)
    table.write(M, promote(promote(Slots(), slot(1)), slot(2)))
    table.store.mkdir()
    for version in (1, 2, 3, 4):
        table.path(slot(version).digest).write_bytes(b"x")
    (table.store / f"{slot(4).digest}.part").write_bytes(b"x")
    assert table.clean(lambda: frozenset({slot(3).digest})) == 2
    assert sorted(path.name for path in table.store.iterdir()) == sorted(
        f"{slot(v).digest}.edgeml" for v in (1, 2, 3)
    )


def test_giving_slots_up_goes_to_previous_then_factory_then_nothing():
    slots = promote(promote(promote(Slots(), slot(1)), slot(2)), slot(3))
    assert slots == Slots(slot(3), slot(2), slot(1))
    after = [demote(slots)]
    after += [demote(after[-1])]
    after += [demote(after[-1])]
    assert [one.current for one in after] == [slot(2), slot(1), None]
